"""Uploading to the Hub: whose token it is, the repository, and every failure on the way in one sentence."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import BUGS, MsaError, causes, network_reason, reason

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_repo_id(repo_id: str) -> None:
    """Check a repository's name.

    Raises:
        MsaError: If it is no ``"org/name"`` that the Hub takes.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise MsaError(
            f"{repo_id!r} is not the name of a Hub repository; give ORG/NAME, with letters, digits, '-', '_' and '.'."
        )


def find_account(api: "HfApi") -> dict[str, Any]:
    """Who the token belongs to, as the Hub tells it.

    Raises:
        MsaError: If it is absent, unknown or may only read, or the Hub cannot be asked.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError

    settings = f"{api.endpoint}/settings/tokens"
    if not (api.token or get_token()):
        raise MsaError(
            f"There is no Hub token: make one with the right to write at {settings}, then `hf auth login` or set "
            "HF_TOKEN."
        )
    with plain_errors(api.endpoint, {}):
        try:
            account: dict[str, Any] = api.whoami()
        except HfHubHTTPError as error:
            if error.response.status_code in (401, 403):
                raise MsaError(
                    f"The Hub does not accept this token; make a new one with the right to write at {settings}, then "
                    "`hf auth login`, or set HF_TOKEN, which goes before a login."
                ) from error
            raise
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise MsaError(
            f"The Hub token of {account['name']} may only read; make one with the right to write at {settings}, then "
            "`hf auth login` or set HF_TOKEN."
        )
    return account


def prepare_repo(
    api: "HfApi", repo_id: str, private: bool, revision: str | None = None, repo_type: str = "model"
) -> None:
    """Create a repository and a branch where absent; never put something private where all can see it.

    Args:
        api: The Hub.
        repo_id: ``"org/name"``.
        private: Whether it has to be private.
        revision: The branch; None: the main one.
        repo_type: ``"model"`` or ``"dataset"``.

    Raises:
        MsaError: If it has to be private, and is there and public.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise MsaError(
                f"{repo_id} exists already and is public; choose another name, make it private in its settings, or "
                "push without asking for private."
            )
    except RepositoryNotFoundError:
        pass
    # None and not False: an organisation may make all its repositories private.
    api.create_repo(repo_id, private=private or None, exist_ok=True, repo_type=repo_type)
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)


@contextlib.contextmanager
def plain_errors(repo_id: str, account: Mapping[str, Any], command: str = "the same command again") -> Iterator[None]:
    """Say in one sentence what went wrong on the way to the Hub and what to do.

    Args:
        repo_id: Where to.
        account: Of `find_account`; empty before it is known.
        command: What sends the rest.

    Raises:
        MsaError: In place of whatever the calls of the Hub's client raise: inside is nothing else.
    """
    from huggingface_hub.errors import HfHubHTTPError

    again = f"nothing is half-written there, and {command} sends only what has not arrived"
    try:
        yield
    except MsaError:
        raise
    except Exception as error:
        status = next((e.response.status_code for e in causes(error) if isinstance(e, HfHubHTTPError)), None)
        found = network_reason(error)
        if status in (401, 403, 404) and account:
            places = [account["name"], *(org["name"] for org in account.get("orgs", []))]
            message = (
                f"{places[0]} may not write to {repo_id} (the Hub answered {status}); choose a name under "
                f"{' or '.join(places)}, or use a token with the right to write there."
            )
        elif status is not None and 400 <= status < 500 and status not in (401, 403, 404, 408, 429):
            message = f"The push to {repo_id} was refused: {found}."
        elif found is not None:
            message = f"The push to {repo_id} did not get through: {found}; {again}."
        elif isinstance(error, (*BUGS, ValueError)):
            message = f"The Hub gave an answer that cannot be used ({reason(error)}); try again later: {again}."
        else:
            raise
        raise MsaError(message) from error
