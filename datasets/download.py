"""robomimic's released datasets, from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from burnish.errors import BurnishError

REPOSITORY = "robomimic/robomimic_datasets"
VERSION = "v1.5"
# dataset type -> tasks, file types: robomimic 0.5's DATASET_REGISTRY, without images (those are not hosted)
RELEASED = {
    "ph": (("lift", "can", "square", "transport", "tool_hang"), ("raw", "low_dim")),
    "mh": (("lift", "can", "square", "transport"), ("raw", "low_dim")),
    "mg": (("lift", "can"), ("raw", "low_dim_sparse", "low_dim_dense")),
    "paired": (("can",), ("raw", "low_dim")),
}
TIMEOUT_SECONDS = 5.0


def download(
    task: str,
    dataset_type: str = "ph",
    hdf5_type: str = "low_dim",
    destination: Path = Path("data/robomimic"),
) -> Path:
    """Fetch one of robomimic's files -> its path below `destination`; nothing is done if it is there.

    Args:
        task: lift, can, square, transport or tool_hang.
        dataset_type: "ph" (proficient human), "mh" (multi-human), "mg" (machine-generated) or "paired".
        hdf5_type: "low_dim" (for mg: "low_dim_sparse" or "low_dim_dense"), or "raw" (states only).

    Raises BurnishError for a file that was never released, and, offline, with what to fetch by hand and where
    to put it.
    """
    name = released_file(task, dataset_type, hdf5_type)
    target = destination / name
    if target.is_file():
        return target
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(REPOSITORY, name, repo_type="dataset")
    try:
        # hf_hub_download alone goes on trying for half a minute when there is no network
        get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS)
        hf_hub_download(REPOSITORY, name, repo_type="dataset", local_dir=destination)
    except Exception as error:  # the hub's, the HTTP library's and the operating system's: no common base
        raise BurnishError(
            f"cannot download {name} of the Hugging Face dataset {REPOSITORY} ({type(error).__name__}); "
            f"fetch {url} by hand and put it at {target}"
        ) from error
    return target


def released_file(task: str, dataset_type: str, hdf5_type: str) -> str:
    """The name of a released file in the repository, "v1.5/lift/ph/low_dim_v15.hdf5".

    Raises BurnishError, listing what there is, if it was never released.
    """
    if dataset_type not in RELEASED:
        raise BurnishError(f"dataset_type={dataset_type}: expected one of {', '.join(RELEASED)}")
    tasks, hdf5_types = RELEASED[dataset_type]
    if task not in tasks:
        raise BurnishError(f"task={task}: the {dataset_type} datasets are of {', '.join(tasks)}")
    if hdf5_type not in hdf5_types:
        raise BurnishError(f"hdf5_type={hdf5_type}: the {dataset_type} datasets have {', '.join(hdf5_types)}")
    stem = "demo" if hdf5_type == "raw" else hdf5_type
    return f"{VERSION}/{task}/{dataset_type}/{stem}_v15.hdf5"
