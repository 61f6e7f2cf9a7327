"""Files, without torch: those from outside, read with limits; what may be opened at all; durable writes and locks."""
