"""The experiments of the paper that Faded follows, as audits."""
