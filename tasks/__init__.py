"""Tasks on the shared backbones: one package each. Installed as ``effdense.tasks``."""

if __name__ != "effdense.tasks":
    raise ImportError(f"imported as {__name__!r}: import effdense.tasks instead")
