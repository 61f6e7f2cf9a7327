"""uvicorn's HTTP/1.1 protocol with two timeouts that it lacks: for headers, and for clients that do not read."""

from __future__ import annotations

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from dialogpt.serve.errors import error_object

HEADER_TIMEOUT_SECONDS = 10.0  # for the headers of a request, the first of a connection too
WRITE_TIMEOUT_SECONDS = 20.0  # for a client to read what was sent, once its buffers are full


class TimedProtocol(H11Protocol):
    """Closes connections that do not finish their headers, or do not read their response."""

    _header_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timer."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """Handle received data, and stop the header timer once the headers are complete."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_header_timer()
        else:
            self._await_headers()

    def pause_writing(self) -> None:
        """Pause, and start the timer within which the client must read."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(WRITE_TIMEOUT_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume, as the client has read."""
        super().resume_writing()
        self._cancel_write_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        self._cancel_header_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    def _await_headers(self) -> None:
        if self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self._headers_timed_out)

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _headers_timed_out(self) -> None:
        """Answer 408 if no response has started, and close the connection."""
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
            sentence = f"the headers did not arrive within {HEADER_TIMEOUT_SECONDS:g} seconds; send them again"
            body = json.dumps({"error": error_object(sentence, "invalid_request_error")}).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            response = h11.Response(status_code=408, headers=headers, reason=b"Request Timeout")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
