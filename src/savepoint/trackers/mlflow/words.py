"""Explain errors of MLflow's store to a person. MLflow is not imported."""

import re
from urllib.parse import urlsplit

from savepoint.trackers.process import Message

_WHO = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
_WHERE = "Check tracker.uri and MLFLOW_TRACKING_URI"


def explain(error: Exception, order: Message) -> str | None:
    """Return what went wrong and what to do about it, or None if the error's own text must suffice.

    One fault can arrive in several forms: as MLflow's own error, as that of a request for an artifact, or as text only.

    order: the worker's order, which names the store.
    """
    uri, text = order["uri"], str(error)
    if "Invalid Host header" in text:
        name = urlsplit(uri).netloc.rpartition("@")[2]
        return f"{uri} refuses the name in its address (403). Add {name} to the server's --allowed-hosts"
    if "not in a valid JSON format" in text or re.search(r"Exceeded \d+ redirects", text):
        return f"{uri} does not answer like an MLflow server. It may be a login page. {_WHERE}"
    if "Connection aborted" in text:
        return f"{uri} broke the connection off. The server's log may say why"
    match _status(error):
        case 401:
            return f"{uri} refuses the user or the password (401). Set {_WHO}"
        case 403:
            ask = f"Ask for the permission to edit the experiment {order['experiment']!r}"
            return f"{uri} forbids this to the user (403). {ask}, or set tracker.experiment to another, or {_WHO}"
        case 404:
            return f"{uri} is no MLflow server (404). {_WHERE}"
        case int(status) if status == 429 or status >= 500:
            return f"{uri} answers with an error ({status}). The server's log says why"
    # A database's message without the SQL around it, also if a server has passed it on.
    if said := re.search(r"\(\w+(?:\.\w+)+\)\s+(.*?)\s*(?:LINE \d+:|\[SQL:|\(Background on|$)", text, re.DOTALL):
        return f"the database at {uri} says: {' '.join(said[1].split())}"
    return None


def _status(error: Exception) -> int | None:
    """Return the HTTP status of a server's answer, or None if the error does not tell it."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    if found := re.search(r"too many (\d{3}) error responses|failed with error code (\d{3})", str(error)):
        return int(found[1] or found[2])
    codes = {"UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "ENDPOINT_NOT_FOUND": 404}
    return codes.get(str(getattr(error, "error_code", "")))
