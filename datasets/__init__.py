"""Demonstrations: readers and writers, windows for training, checks, hub download."""

if __name__ == "datasets":
    raise ImportError(
        "this folder is the package burnish.datasets, not a package called datasets: "
        "import burnish.datasets, and keep Burnish's repository root off the import path of other projects"
    )
