"""What tasks of every subject share: retries, progress, reports and locks."""
