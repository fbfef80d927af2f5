"""Explain AMQP and network errors with their remedy; equal errors give equal texts."""

from __future__ import annotations

import socket
import ssl

from pika import exceptions
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
    AMQPConnectorSocketConnectError,
    AMQPConnectorTransportSetupError,
)

from adapters.rabbitmq.options import RabbitOptions


class SessionEnded(Exception):
    """The connection is unusable; the text says why."""


def is_expected(error: BaseException) -> bool:
    """Whether the error comes from a broker or the network, not from a bug."""
    kinds = (SessionEnded, OSError, exceptions.AMQPError, AMQPConnectorException)
    return isinstance(error, kinds)


def explain(error: BaseException, options: RabbitOptions) -> str:
    """One line for the log and the caller. Never contains the password."""
    return f"RabbitMQ at {options.where}: {_reason(_root(error), options)}"


def _root(error: BaseException) -> BaseException:
    """The error that pika has wrapped."""
    inner: object = None
    if type(error) is exceptions.AMQPConnectionError and error.args:
        inner = error.args[0]
    elif isinstance(error, AMQPConnectorSocketConnectError | AMQPConnectorTransportSetupError):
        inner = error.exception
    return _root(inner) if isinstance(inner, BaseException) else error


def _reason(error: BaseException, options: RabbitOptions) -> str:
    match error:
        case SessionEnded():
            return str(error)
        case exceptions.AuthenticationError() | exceptions.ProbableAuthenticationError():
            return f"it rejects user {options.user!r}: check user name and password"
        case exceptions.ProbableAccessDeniedError() if "not found" in str(error):
            return f"it has no virtual host {options.vhost!r}: create it, or correct its name"
        case exceptions.ProbableAccessDeniedError():
            return (
                f"user {options.user!r} has no access to virtual host {options.vhost!r}: "
                f"grant permissions there ({_first(error)})"
            )
        case exceptions.IncompatibleProtocolError():
            return (
                "the server does not speak AMQP 0-9-1, is still starting, or requires TLS: check "
                "the port and the TLS setting"
            )
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate cannot be trusted ({error.verify_message}): check "
                "RABBITMQ_CA_FILE and the host's name"
            )
        case ssl.SSLError():
            return (
                f"no TLS connection ({error.reason or error}): check that this port uses TLS, "
                "and RABBITMQ_CERT_FILE"
            )
        case socket.gaierror():
            return f"the host name was not found ({error.strerror}): check the host"
        case ConnectionRefusedError():
            return "the connection was refused: start the broker, or check host and port"
        case AMQPConnectorException() | TimeoutError():
            return (
                "no response in time: check the host, the port, the firewall and the TLS setting"
            )
        case exceptions.ConnectionBlockedTimeout():
            return "it blocks publishers: check it for a memory or disk alarm"
        case exceptions.AMQPHeartbeatTimeout():
            return "no heartbeat arrived"
        case exceptions.ChannelClosedByBroker() | exceptions.ConnectionClosedByBroker():
            return _closed(error.reply_code, error.reply_text, options)
        case exceptions.StreamLostError():
            return f"the connection was cut ({_first(error)})"
        case OSError():
            return f"{error.strerror or error}"
    return f"{type(error).__name__}: {error}"


def _closed(code: int, text: str, options: RabbitOptions) -> str:
    """Explain the code and text with which the broker closed a channel or the connection."""
    reply = f"({code}) {text}"
    if code == 406 and "timed out" in text:
        return (
            "it requeued a delivery after its acknowledgement timeout: raise consumer_timeout "
            f"in its configuration {reply}"
        )
    if code == 406 and "inequivalent arg" in text:
        return f"{_other_queue(text, options)} {reply}"
    if code == 406:
        return f"it rejects this call: its version may be newer than this worker supports {reply}"
    if code == 403:
        return f"user {options.user!r} lacks permissions: grant configure, write, read {reply}"
    if code == 320:
        return f"it closed the connection {reply}"
    return f"it closed the channel or connection {reply}"


def _other_queue(text: str, options: RabbitOptions) -> str:
    """The remedy where a queue exists with other arguments than the worker declares."""
    if f"queue '{options.queue}'" in text:
        return (
            f"queue {options.queue!r} was declared with arguments, and the backend and the worker "
            "declare it without: correct the queue's name, or move the messages to a queue "
            "without arguments"
        )
    return (
        "one of the worker's own queues was declared with other arguments: delete it when it is "
        "empty; the worker then declares it again"
    )


def _first(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
