"""Who may come in: accounts, passwords, browsers, keys for scripts."""
