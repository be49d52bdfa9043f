-- The views of what `detect` and `report` compute from detectors' predictions and store next to them: intervals, the trade-off
-- of utility and fairness, and thresholds by group.

-- The rows of trivial detectors are stored with every detector of their evaluation set, in which they are the same:
-- `faces_of` is the detector that they were stored with.
create macro of_evaluation_sets(name) as table
    select evaluation_set, stored.* exclude (faces_of)
    from query_table(name) as stored join evaluation_sets as sets on sets.detector = stored.faces_of
    qualify stored.faces_of = min(stored.faces_of) over (partition by evaluation_set, stored.detector);

create view stored_detection_metrics as
    from detection_metrics_columns union all by name from {detection_metrics};
create view detection_metrics as
    from of_evaluation_sets('stored_detection_metrics');
create view stored_tradeoff_points as
    from tradeoff_points_columns union all by name from {tradeoff_points};
create view tradeoff_points as
    from of_evaluation_sets('stored_tradeoff_points');
create view stored_repair as
    from repair_columns union all by name from {repair};
create view repair as
    from of_evaluation_sets('stored_repair');
create view stored_repair_thresholds as
    from repair_thresholds_columns union all by name from {repair_thresholds};
create view repair_thresholds as
    from of_evaluation_sets('stored_repair_thresholds');
