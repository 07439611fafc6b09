-- Views over the tables of schema.sql; laid anew whenever a store is opened, so that they are never older than the code.

-- Which version served a request, why, and at which share.
CREATE OR REPLACE VIEW provenance AS
SELECT
    r.request_id, r.model_id, r.served_version, r.assigned_version, r.arm,
    t.share, r.propensity, r.unit_id, r.operation_id, o.strategy, r.step, r.route_epoch, r.fallback,
    r.admitted_at_s,
    CASE
        WHEN r.arm = 'pinned' THEN 'the request named ' || r.assigned_version || ' itself'
        WHEN r.arm = 'shadow' THEN 'a copy of request ' || coalesce(r.pair_id, '?') || ' for the shadow ' || r.assigned_version
        WHEN r.operation_id IS NOT NULL AND o.operation_id IS NULL AND p.operation_id IS NOT NULL THEN format(
            'the {} design of the experiment {} asked {} as its {}{}', p.body->>'design', r.operation_id,
            r.assigned_version, CASE r.arm WHEN 'stable' THEN 'baseline' ELSE r.arm END,
            CASE p.body->>'design' WHEN 'switchback' THEN ' in block ' || r.step ELSE '' END
        )
        WHEN r.operation_id IS NULL THEN r.assigned_version || ' was the active version, no switch was under way'
        ELSE format(
            'unit {} was in the arm {} ({}), which had a share of {} at step {} of the {} switch {}',
            r.unit_id, r.arm, r.assigned_version, coalesce(t.share::VARCHAR, '?'), r.step,
            coalesce(o.strategy, '?'), r.operation_id
        )
    END
    || CASE
        WHEN r.served_version IS NULL THEN '; nothing answered: ' || coalesce(r.error_type, 'unknown')
        WHEN r.fallback THEN '; ' || r.assigned_version || ' failed before its first token, ' || r.served_version || ' took over'
        ELSE ''
    END AS why,
    (
        SELECT arg_max(m.reason, m.sequence) FROM transitions m
        WHERE m.operation_id = r.operation_id AND m.at_s <= r.admitted_at_s
    ) AS step_reason
FROM requests r
LEFT JOIN routes t ON t.model_id = r.model_id AND t.epoch = r.route_epoch AND t.arm = r.arm
LEFT JOIN operations o ON o.operation_id = r.operation_id
LEFT JOIN plans p ON p.operation_id = r.operation_id;

-- Where an operation's runs are in each tracking sink, by the latest publication: the way from evidence to MLflow.
CREATE OR REPLACE VIEW tracking_links AS
WITH latest AS (
    SELECT sink, body->>'operation_id' AS operation_id, body->>'name' AS experiment, result, published_at_s
    FROM outbox
    WHERE published_at_s IS NOT NULL AND json_exists(result, '$.runs')
    QUALIFY row_number() OVER (PARTITION BY sink, body->>'operation_id' ORDER BY sequence DESC) = 1
), arms AS (
    SELECT *, unnest(json_keys(result, '$.runs')) AS arm FROM latest
)
SELECT
    operation_id, sink, experiment, arm,
    (result->'runs')->>arm AS run_id,
    (result->'run_urls')->>arm AS run_url,
    result->>'compare' AS compare_url,
    result->>'experiment' AS experiment_url,
    published_at_s
FROM arms;
