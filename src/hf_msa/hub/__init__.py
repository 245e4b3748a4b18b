"""Model cards, pushing to the Hub, and the check that what was pushed predicts the same."""
