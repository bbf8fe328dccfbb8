"""Claims: the papers' claims as data, the ledger of verdicts, comparisons of systems, committed studies."""
