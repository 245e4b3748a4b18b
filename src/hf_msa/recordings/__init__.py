"""From recordings to rows: transcripts with word times, and features aligned to the words."""
