"""The race: plan candidates, run each in a worker process, judge, measure, decide."""
