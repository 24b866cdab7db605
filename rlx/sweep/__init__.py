"""Many runs: search spaces, the ledger of a sweep, and where its runs are worked on."""
