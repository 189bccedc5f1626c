"""Why a text is not translated."""


class TranslateError(ValueError):
    """The text cannot be translated; the message says where and what would be right."""


class OptionMissingError(TranslateError):
    """The text lacks something that an option of the command supplies; the message names the option."""
