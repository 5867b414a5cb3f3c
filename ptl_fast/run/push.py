"""Upload a finished result to the Hugging Face hub (--push-to-hub)."""

from pathlib import Path

from ptl_fast.base.checksums import LIST
from ptl_fast.base.console import reason

# What is only for this machine.
NOT_UPLOADED = [LIST, "*.tmp"]


def upload(folder: Path, name: str) -> str:
    """Upload a model folder to a repository, which is made, private, if it does not exist.

    Files that the repository has already are not sent again, so it may be repeated.

    Args:
        folder: final/ of a run.
        name: OWNER/NAME; NAME is the repository of the user who is logged in.

    Returns:
        The address of the repository.

    Raises:
        ValueError: nobody is logged in, the hub cannot be reached, or it refuses; the folder is
            as it was.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=folder,
            ignore_patterns=NOT_UPLOADED,
            commit_message="A model compressed with ptl_fast",
        )
    except Exception as error:  # whatever fails on the way to the hub
        raise ValueError(
            f"--push-to-hub {name}: {reason(error)}. The result is whole in {folder}; log in with"
            " `hf auth login`, or set HF_TOKEN, and the same command uploads it"
        ) from error
    return str(repository)
