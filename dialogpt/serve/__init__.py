"""One model for many conversations: `engine` decodes, `requests` says what may be asked, `api` speaks HTTP."""
