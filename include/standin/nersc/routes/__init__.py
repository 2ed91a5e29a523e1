"""The routes of SFAPI v1.2, by topic."""
