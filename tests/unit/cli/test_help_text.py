"""Help of a command from its docstring."""

from sdpo_ray.cli.help_text import unwrap


def test_paragraphs_are_joined_and_examples_keep_their_lines():
    docstring = """First line.

    \b
    sdpo one
    sdpo two    # comment

    A sentence that goes on
    in the next line.
    """
    assert unwrap(docstring) == (
        "First line.\n\n\b\nsdpo one\nsdpo two    # comment\n\nA sentence that goes on in the next line."
    )
