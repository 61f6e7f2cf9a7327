"""Files from outside and of our own, read with limits: JSON, schemas, and what may be opened at all."""
