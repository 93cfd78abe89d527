"""Models on the hub: names, revisions and snapshots in the local cache."""

from __future__ import annotations

import re
from pathlib import Path

from llm_lora import files
from llm_lora.errors import UserError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""The form of model names on the hub."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


def commit(snapshot: Path) -> str | None:
    """The commit of a folder in the hub's cache."""
    return snapshot.name if _COMMIT.fullmatch(snapshot.name) else None


def fetch(
    name: str,
    revision: str | None,
    patterns: list[str],
    *,
    without: list[str] | None = None,
    local_only: bool,
) -> Path:
    """The snapshot of a model in the hub's cache, downloaded if necessary.

    Args:
        name, revision: as on the hub.
        patterns: files to download.
        without: files to leave out although they match one of the patterns.
        local_only: use the cache only.

    Raises:
        UserError: there is no such model, access is denied, or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=without,
                local_files_only=local_only,
            )
        )
    except errors.GatedRepoError:
        problem = "this model is gated: its owner must grant you access"
        fix = f"accept its terms on its page ({name}), then log in: hf auth login"
    except errors.RepositoryNotFoundError:
        problem = "no such folder here, and no such model on the hub (or it is private)"
        fix = "check the spelling; for a private model log in: hf auth login"
    except errors.RevisionNotFoundError:
        problem = f"this model has no revision {revision!r}"
        fix = "check base and revision in the recipe"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = "the hub cannot be reached, and this model is not in the local cache"
        fix = (
            "go online once (and unset HF_HUB_OFFLINE), name a local folder, "
            "or use the embedded base: --set base=tiny"
        )
    except errors.HFValidationError:
        problem, fix = "this is neither a folder nor the name of a hub model", "write owner/name"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        problem = f"the hub answered {status}"
        refused = status in (401, 403)
        fix = (
            "log in again: hf auth login" if refused else "try again later, or name a local folder"
        )
    except OSError as error:
        raise files.write_error(error, Path(name)) from None
    # Raised without its cause, because the library's messages quote request headers and addresses.
    raise UserError(problem, where=name, fix=fix) from None
