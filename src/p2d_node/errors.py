"""The errors of p2d_node: a message says what, the value got, what is allowed, the next step."""


class P2dError(Exception):
    """Base of every error that p2d_node raises on purpose."""


class ConfigError(P2dError):
    """A parameter, a file or a folder that the user named cannot be used."""


class BackendUnavailableError(P2dError):
    """A library or device that the configuration asks for is not there."""


class EngineMismatchError(P2dError):
    """A built engine does not fit this machine, this model or its own manifest."""


class ImageDecodeError(P2dError):
    """The bytes of one camera frame are not a picture that can be used."""


class InferenceError(P2dError):
    """A model stage failed on one sweep."""
