"""The one client that all threads share."""

from __future__ import annotations

import google.auth
from google.api_core.retry import Retry
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY

from adapters.common.deadline import BoundedAdapter
from adapters.gcs.options import GcsOptions

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

FIRST_PAUSE = 0.5
"""Seconds before a request is retried, doubled each time: Google allows one write per second to
an object and returns 429 for more."""
MAX_PAUSE = 8.0


def connect(options: GcsOptions) -> Client:
    """A client with its own connection pool. It sends nothing to the store yet.

    Raises:
        google.auth.exceptions.GoogleAuthError: there are no usable credentials.
    """
    project = options.project
    credentials: Credentials
    if options.emulator_url is not None:
        credentials = AnonymousCredentials()
    elif options.credentials_file is not None:
        # google-auth deprecates this function for untrusted files; this one is the operator's.
        credentials, found = google.auth.load_credentials_from_file(
            str(options.credentials_file), scopes=[SCOPE]
        )
        project = project or found
    else:
        credentials, found = google.auth.default(scopes=[SCOPE])
        project = project or found
    session = AuthorizedSession(credentials)
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(pool_maxsize=options.max_pool_connections))
    return Client(
        project=project,
        credentials=credentials,
        client_options={"api_endpoint": options.emulator_url},
        _http=session,
    )


def retry(options: GcsOptions) -> Retry:
    """When and for how long the client library repeats a request.

    Connection errors, timeouts, 408, 429 and 5xx are repeated.
    """
    return DEFAULT_RETRY.with_delay(FIRST_PAUSE, MAX_PAUSE, 2.0).with_timeout(
        options.retry_seconds
    )
