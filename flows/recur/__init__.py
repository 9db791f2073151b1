"""Audits that recur: schedules, deployments, what they report."""
