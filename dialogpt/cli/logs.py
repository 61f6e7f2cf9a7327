"""How a server's log is written: as lines for people, or as JSON for programs."""

from __future__ import annotations

import json
import logging
import sys
import time

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


class JsonFormatter(logging.Formatter):
    """One JSON object on each line: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"
        content = {"time": moment, "level": record.levelname.lower(), "logger": record.name}
        content |= {"message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, ensure_ascii=False)


def configure(level: str, form: str) -> None:
    """Send what the package logs to stderr, from a level on, in one of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("dialogpt: %(asctime)s %(message)s", "%H:%M:%S")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logger = logging.getLogger("dialogpt")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(level.upper())
