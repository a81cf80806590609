"""The errors fxprune raises: one base class, one kind for each place where something can be wrong."""


class FxpruneError(Exception):
    """Base of every error raised on purpose; the message says where, what was found, what was needed, what to do."""


class MaskError(FxpruneError):
    """A mask does not fit the model: wrong name, shape, values or type."""


class UnsupportedError(FxpruneError):
    """The model, the call or the target asks for something that fxprune does not do."""


class VerifyError(FxpruneError):
    """The annotated graph breaks one of the rules of `verify`."""


class PreconditionError(FxpruneError):
    """A pass was run on a graph that does not meet its `requires`."""


class PostconditionError(FxpruneError):
    """A pass left a graph that does not meet its `ensures`."""


class CodegenError(FxpruneError):
    """A kernel could not be generated, built or checked."""


class ArtifactError(FxpruneError):
    """A saved artifact cannot be read or does not fit this machine."""


class TrainingError(FxpruneError):
    """A training of the lottery cannot go on: it diverged, or its parts do not fit together."""
