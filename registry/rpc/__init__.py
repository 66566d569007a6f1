"""JSON-RPC 2.0 over stdin and stdout, one message a line: a server in any language embeds the registry as a child.

The dispatcher is our own because the one kept-up library with an asynchronous one (pjrpc 2.2) leaves a request of id
null unanswered, refuses a whole batch for one bad entry and answers a batch of notifications, all against the standard.

**Messages.** A line is one JSON text in UTF-8, at most 1 MiB long: a request or a batch. Methods are the calls of
`registry.protocol.AsyncCommandRegistry`, with its parameter names (or positions) but for `connection`; `context` is an
object `{actor, traceparent, request_id, attributes}`; instants are RFC 3339 text. Blank lines are passed over. An
answer is one line; results are the registry's models, with instants in RFC 3339 with Z and every null written out.

**Order.** Requests run concurrently, and are answered as they finish: a request that builds on another is sent after
that one's answer. A batch, too, runs concurrently; its answers stand in the order of its requests. At most
`MAX_IN_FLIGHT` messages are worked on; then no more are read until one is answered.

**Exactness.** Integers are exact, whatever their size (where a call takes 64 bits, more are refused); other numbers
are the nearest IEEE 754 doubles, and one too large for a double is refused. A line is answered with -32700 when it is
no JSON (NaN is none), is not UTF-8, is too long or nests too deep to be read, or names a key twice in one object.

**Errors.** -32700, -32600, -32601 and -32603 as in the standard; -32602 for parameters that are unknown or missing.
What the registry refuses is -32000, with `data.code` (`COMMAND_NOT_FOUND`, `INVALID_COMMAND`, ...), `data.retryable`
and the facts (`field`, `command_id`, `from_state`, ...). Details of an internal error go to stderr.

**The end.** At the end of input, or on SIGINT or SIGTERM, what is under way is finished and answered first; a second
signal ends the process at once. Once nobody reads the answers, it ends quietly.
"""

from registry.rpc.dispatch import MAX_IN_FLIGHT
from registry.rpc.server import run_rpc, serve

__all__ = ["MAX_IN_FLIGHT", "run_rpc", "serve"]
