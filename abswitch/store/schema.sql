-- The system of record. docs/schema.md explains it; tests/store/test_schema.py holds the two, and the records in
-- abswitch/domain.py and abswitch/records.py, together.
--
-- Evidence tables (requests, scores, routes, transitions, assignments, health_samples, alerts, looks) are append-only and have no keys on purpose: a key would
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
    commit_sha      VARCHAR,                  -- of a hub id: what its revision meant then
    PRIMARY KEY (model_id, version)
);

-- Operations as they stand now; `transitions` tells how they came there.
CREATE TABLE IF NOT EXISTS operations (
    operation_id  VARCHAR PRIMARY KEY,
    model_id      VARCHAR NOT NULL,
    stable        VARCHAR,                    -- NULL: the model's first deployment
    candidate     VARCHAR NOT NULL,
    strategy      VARCHAR NOT NULL,           -- immediate, gradual, canary, ab_test, shadow, ...
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
    output           VARCHAR,                 -- the same; also for both sides of a shadow pair
    pair_id          VARCHAR,                 -- of a shadow's copy: the request it copies; of a design's requests: what belongs together
    weights_digest   VARCHAR,                 -- of the weights that answered; NULL: not known
    tier             VARCHAR NOT NULL,        -- residency of the serving version at arrival
    switch_path      VARCHAR NOT NULL,        -- how its instance last became able to serve: load, wake, ...
    propensity       DOUBLE                   -- chance that the unit had to get this arm; NULL: it was not drawn
);

-- One row per scorer and answer.
CREATE TABLE IF NOT EXISTS scores (
    request_id  VARCHAR NOT NULL,
    scorer      VARCHAR NOT NULL,
    value       DOUBLE,                       -- NULL: the scorer raised
    error       VARCHAR,                      -- what it raised
    scored_at_s DOUBLE NOT NULL,
    source      VARCHAR NOT NULL,             -- scorer, late, human
    comment     VARCHAR                       -- in a person's words
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

-- Which arm a unit met, written when its first request of an operation was admitted, however that ends. The same pair
-- of unit and arm may appear again (after a restart, or when very many units came between); the earliest counts.
CREATE TABLE IF NOT EXISTS assignments (
    operation_id  VARCHAR NOT NULL,
    model_id      VARCHAR NOT NULL,
    unit_id       VARCHAR NOT NULL,
    arm           VARCHAR NOT NULL,
    version       VARCHAR NOT NULL,
    share         DOUBLE NOT NULL,            -- of the arm then: the chance of the unit to get it
    step          INTEGER NOT NULL,
    route_epoch   BIGINT NOT NULL,
    request_id    VARCHAR NOT NULL,
    assigned_at_s DOUBLE NOT NULL
);

-- What the health monitor saw: one row per version and look.
CREATE TABLE IF NOT EXISTS health_samples (
    at_s                DOUBLE NOT NULL,
    model_id            VARCHAR NOT NULL,
    version             VARCHAR NOT NULL,
    alive               BOOLEAN NOT NULL,
    residency           VARCHAR NOT NULL,
    in_flight           INTEGER NOT NULL,
    waiting             INTEGER NOT NULL,
    last_token_age_s    DOUBLE,               -- NULL: no token yet
    memory_bytes        BIGINT NOT NULL,
    window_s            DOUBLE NOT NULL,      -- what the columns below cover
    requests            INTEGER NOT NULL,
    errors              INTEGER NOT NULL,
    requests_per_s      DOUBLE,
    output_tokens_per_s DOUBLE,
    latency_p50_s       DOUBLE,               -- NULL: no request ended in the window
    latency_p95_s       DOUBLE,
    latency_p99_s       DOUBLE,
    first_token_p50_s   DOUBLE,
    first_token_p95_s   DOUBLE,
    error               VARCHAR
);

-- Every change of an alert's state; the latest row of an alert is how it stands.
CREATE TABLE IF NOT EXISTS alerts (
    alert_id     VARCHAR NOT NULL,
    state        VARCHAR NOT NULL,            -- firing, acknowledged, resolved
    severity     VARCHAR NOT NULL,            -- warning, critical
    metric       VARCHAR NOT NULL,
    model_id     VARCHAR NOT NULL,
    version      VARCHAR,
    operation_id VARCHAR,
    value        DOUBLE,
    threshold    DOUBLE,
    message      VARCHAR NOT NULL,
    at_s         DOUBLE NOT NULL
);

-- Every metric at every look: the points of the sequential curves.
CREATE TABLE IF NOT EXISTS looks (
    operation_id VARCHAR NOT NULL,
    look         INTEGER NOT NULL,
    metric       VARCHAR NOT NULL,
    role         VARCHAR NOT NULL,            -- primary, guardrail, secondary, validity
    method       VARCHAR NOT NULL,
    arm          VARCHAR NOT NULL,            -- the arm held against the baseline
    n_baseline   BIGINT NOT NULL,
    n_candidate  BIGINT NOT NULL,
    estimate     DOUBLE,                      -- NULL: not attainable
    low          DOUBLE,
    high         DOUBLE,
    p_value      DOUBLE,
    e_value      DOUBLE,
    alpha_spent  DOUBLE,
    decision     VARCHAR NOT NULL,
    at_s         DOUBLE NOT NULL
);

-- One row per execution of an experiment's specification, replaced as it goes on.
CREATE TABLE IF NOT EXISTS runs (
    run_id       VARCHAR PRIMARY KEY,
    experiment   VARCHAR NOT NULL,
    status       VARCHAR NOT NULL,            -- running, finished, failed, interrupted
    exit_code    INTEGER,
    operation_id VARCHAR,
    spec_digest  VARCHAR NOT NULL,
    spec         JSON NOT NULL,
    parameters   JSON NOT NULL,
    environment  JSON NOT NULL,
    folder       VARCHAR,
    started_at_s DOUBLE NOT NULL,
    ended_at_s   DOUBLE
);

-- Files that came out of runs and operations.
CREATE TABLE IF NOT EXISTS artifacts (
    artifact_id  VARCHAR PRIMARY KEY,
    run_id       VARCHAR,
    operation_id VARCHAR,
    kind         VARCHAR NOT NULL,            -- report, notebook, figure, summary, verdict, log, ...
    name         VARCHAR NOT NULL,
    uri          VARCHAR NOT NULL,
    media_type   VARCHAR NOT NULL,
    size_bytes   BIGINT,
    sha256       VARCHAR,
    created_at_s DOUBLE NOT NULL
);

-- Every process that wrote here, with the last of its events that is in: what lies in its spool up to there is not
-- applied again.
CREATE TABLE IF NOT EXISTS writers (
    writer_id  VARCHAR NOT NULL,
    last_event BIGINT NOT NULL,
    pid        INTEGER NOT NULL,
    began_at_s DOUBLE NOT NULL
);

-- Rows that were handed in and are not here, by second: what a verdict must know of.
CREATE TABLE IF NOT EXISTS gaps (
    writer_id VARCHAR NOT NULL,
    at_s      DOUBLE NOT NULL,                -- seconds since the epoch, rounded down
    row_count BIGINT NOT NULL,
    reason    VARCHAR NOT NULL                -- dropped, rejected
);

-- Everything that ever happened to a model's versions, aliases and tags; a restart replays it.
CREATE TABLE IF NOT EXISTS registry_history (
    model_id     VARCHAR NOT NULL,
    sequence     BIGINT NOT NULL,             -- grows within the model
    action       VARCHAR NOT NULL,            -- registered, requested, promoted, rolled back, ...
    version      VARCHAR,
    previous     VARCHAR,
    alias        VARCHAR,
    actor        VARCHAR NOT NULL,
    reason       VARCHAR NOT NULL,
    operation_id VARCHAR,
    detail       JSON NOT NULL,
    at_s         DOUBLE NOT NULL
);
