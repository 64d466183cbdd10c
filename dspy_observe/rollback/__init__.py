"""Monitor and rollback: from an alert, or from scores, to a decision, to the previous version."""
