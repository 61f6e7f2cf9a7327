"""One model for many clients: `engine` decodes, `schemas` are the request bodies, `app` and `routes` speak HTTP."""
