-- The system of record. docs/schema.md explains it; tests/store/test_schema.py holds the two, and the records in
-- abswitch/domain.py, together.
--
-- Evidence tables (requests, scores, routes, transitions) are append-only and have no keys on purpose: a key would
-- silently refuse the duplicate row that a checker of histories must be able to see, and its index would cost the
-- writer three quarters of its speed. Tables of current state are keyed and replaced in place.
--
-- Instants: *_at_s and at_s are seconds since the Unix epoch; *_mono_s are seconds of the monotonic clock of the
-- process that wrote them. Durations are seconds. Shares are fractions 0-1.

CREATE TABLE IF NOT EXISTS meta (
    schema_version INTEGER NOT NULL,          -- raised with every change of a table below
    created_at_s   DOUBLE NOT NULL,
    created_by     VARCHAR NOT NULL           -- package and version
);

-- Versions as registered; never changed afterwards.
CREATE TABLE IF NOT EXISTS model_versions (
    model_id        VARCHAR NOT NULL,
    version         VARCHAR NOT NULL,
    config          JSON NOT NULL,            -- every field of ModelConfig
    metadata        JSON NOT NULL,            -- whatever the caller kept beside it
    registered_at_s DOUBLE NOT NULL,
    PRIMARY KEY (model_id, version)
);

-- Operations as they stand now; `transitions` tells how they came there.
CREATE TABLE IF NOT EXISTS operations (
    operation_id  VARCHAR PRIMARY KEY,
    model_id      VARCHAR NOT NULL,
    stable        VARCHAR,                    -- NULL: the model's first deployment
    candidate     VARCHAR NOT NULL,
    strategy      VARCHAR NOT NULL,           -- immediate, ab_test
    strategy_config JSON NOT NULL,
    phase         VARCHAR NOT NULL,
    stage         INTEGER NOT NULL,
    share         DOUBLE NOT NULL,            -- the candidate's, as last committed
    epoch         INTEGER NOT NULL,           -- of the state machine, not of the routes
    ending        VARCHAR,                    -- the final phase that follows the drain under way
    promoted      BOOLEAN NOT NULL,
    reason        VARCHAR NOT NULL,
    created_s     DOUBLE NOT NULL,            -- clock of the state machine
    phase_since_s DOUBLE NOT NULL,
    updated_at_s  DOUBLE NOT NULL
);

-- Every move of an operation's state machine; committed before the move's effects are carried out.
CREATE TABLE IF NOT EXISTS transitions (
    operation_id VARCHAR NOT NULL,
    sequence     BIGINT NOT NULL,             -- 1, 2, 3, ... within the operation
    model_id     VARCHAR NOT NULL,
    event        VARCHAR NOT NULL,
    phase_from   VARCHAR NOT NULL,
    phase_to     VARCHAR NOT NULL,
    step         INTEGER NOT NULL,
    share        DOUBLE NOT NULL,
    reason       VARCHAR NOT NULL,
    at_s         DOUBLE NOT NULL
);

-- Every routing snapshot, one row per arm that traffic may reach, in force from committed_mono_s until the model's
-- next epoch.
CREATE TABLE IF NOT EXISTS routes (
    model_id         VARCHAR NOT NULL,
    epoch            BIGINT NOT NULL,
    operation_id     VARCHAR,
    step             INTEGER NOT NULL,
    arm              VARCHAR NOT NULL,        -- stable, candidate
    version          VARCHAR NOT NULL,
    share            DOUBLE NOT NULL,
    committed_at_s   DOUBLE NOT NULL,
    committed_mono_s DOUBLE NOT NULL
);

-- One row per request, written when it ended, however it ended.
CREATE TABLE IF NOT EXISTS requests (
    request_id       VARCHAR NOT NULL,
    model_id         VARCHAR NOT NULL,
    operation_id     VARCHAR,                 -- the operation under way at admission
    step             INTEGER NOT NULL,        -- its stage at admission; 0 outside operations
    route_epoch      BIGINT NOT NULL,         -- the routing snapshot that admitted it
    arm              VARCHAR NOT NULL,        -- assigned; `pinned` when the request named its version itself
    assigned_version VARCHAR NOT NULL,
    served_version   VARCHAR,                 -- NULL: no version answered
    unit_id          VARCHAR NOT NULL,        -- what was randomised
    fallback         BOOLEAN NOT NULL,        -- another version than the assigned one answered
    admitted_at_s    DOUBLE NOT NULL,
    admitted_mono_s  DOUBLE NOT NULL,
    queue_s          DOUBLE NOT NULL,         -- submission to admission
    first_token_s    DOUBLE,                  -- submission to first token; NULL: there was none
    total_s          DOUBLE NOT NULL,         -- submission to the end
    prompt_tokens    INTEGER,
    output_tokens    INTEGER NOT NULL,
    finish_reason    VARCHAR,                 -- stop, length, abort, error
    error_type       VARCHAR,                 -- NULL: answered
    error_message    VARCHAR,
    prompt           VARCHAR,                 -- only where the engine was asked to record text
    output           VARCHAR
);

-- One row per scorer and answer.
CREATE TABLE IF NOT EXISTS scores (
    request_id  VARCHAR NOT NULL,
    scorer      VARCHAR NOT NULL,
    value       DOUBLE,                       -- NULL: the scorer raised
    error       VARCHAR,                      -- what it raised
    scored_at_s DOUBLE NOT NULL
);

-- What an experiment committed itself to before its first exposure. One per operation, never replaced.
CREATE TABLE IF NOT EXISTS plans (
    operation_id VARCHAR PRIMARY KEY,
    digest       VARCHAR NOT NULL,            -- hash of the body
    body         JSON NOT NULL,
    at_s         DOUBLE NOT NULL
);

-- Every look at an experiment; the highest look is the last word.
CREATE TABLE IF NOT EXISTS verdicts (
    operation_id VARCHAR NOT NULL,
    look         INTEGER NOT NULL,            -- 1, 2, 3, ...
    decision     VARCHAR NOT NULL,            -- ship, keep, equivalent, inconclusive, invalid, ...
    rule         VARCHAR NOT NULL,            -- the rule that decided
    reason       VARCHAR NOT NULL,            -- one line, in words
    body         JSON NOT NULL,               -- estimates, intervals, checks
    at_s         DOUBLE NOT NULL,
    PRIMARY KEY (operation_id, look)
);

-- What a tracking sink has yet to publish, in order; rows outlive the process that wrote them.
CREATE TABLE IF NOT EXISTS outbox (
    sink           VARCHAR NOT NULL,          -- e.g. mlflow
    sequence       BIGINT NOT NULL,           -- order of publication within the sink
    job_id         VARCHAR NOT NULL,          -- the same job is published once
    body           JSON NOT NULL,
    created_at_s   DOUBLE NOT NULL,
    published_at_s DOUBLE,                    -- NULL: still waiting
    result         JSON,                      -- what the sink answered (run ids, links), or why it was given up
    PRIMARY KEY (sink, job_id)
);
