"""Follow-ups about the style of an answer: complaints that ask for a value of one attribute, and praise.

Complaints for the two values of one attribute share few words. When they shared most ("I want emojis.", "I dislike
emojis."), a policy trained on them obeyed those about emojis at chance after 6,000 steps.

Held-out complaints never appear in pre-training; only `react(..., split="held_out")` uses them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sdpo_ray.simulate.style import Length, Style

Attribute = Literal["length", "filler", "emoji", "bold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A value of one style attribute that a user wants. Made here; read by `users` and the corpus."""

    attribute: Attribute
    value: Length | bool

    def is_granted_by(self, style: Style) -> bool:
        """Whether an answer in `style` satisfies the wish."""
        return bool(getattr(style, self.attribute) == self.value)

    def grant(self, style: Style) -> Style:
        """Return `style` with the wished attribute changed and the others kept."""
        change: dict[str, Any] = {self.attribute: self.value}
        return replace(style, **change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phrases:
    """Texts about one wish: complaints while it is not satisfied, praise once it is."""

    complaints: tuple[str, ...]
    held_out_complaints: tuple[str, ...]
    praises: tuple[str, ...]


WORDINGS: Mapping[Wish, Phrases] = {
    Wish(attribute="length", value=Length.TERSE): Phrases(
        complaints=(
            "Shorter please.", "Just the answer, please.", "One word is enough.", "Too long.",
            "Keep it short.", "I only need the word itself.",
        ),
        held_out_complaints=("Just one word please.", "Too long, keep it shorter.", "I only need the answer."),
        praises=("Nice and short, thanks.", "I like how short that is."),
    ),
    Wish(attribute="length", value=Length.SENTENCE): Phrases(
        complaints=(
            "One full sentence, please.", "Write a single sentence.", "Answer in one sentence.",
            "Please use exactly one sentence.", "I want one whole sentence.", "A single full sentence, please.",
        ),
        held_out_complaints=("Please answer in a single sentence.", "I want a full sentence.", "Use one sentence."),
        praises=("One clean sentence, thanks.", "I like that it is one sentence."),
    ),
    Wish(attribute="length", value=Length.DETAIL): Phrases(
        complaints=(
            "More detail please.", "Tell me more about it.", "Can you explain more?", "Too short.",
            "Add some background.", "Please give me more than that.",
        ),
        held_out_complaints=("Please explain with more detail.", "Give me more background.", "Too short, add more."),
        praises=("I like the detail, thanks.", "Great background."),
    ),
    Wish(attribute="filler", value=False): Phrases(
        complaints=(
            "Skip the filler.", "No pleasantries please.", "Stop the small talk.", "Do not praise my question.",
            "Cut the fluff.", "Drop the polite phrases.",
        ),
        held_out_complaints=("No filler please.", "Cut the small talk.", "Skip the polite phrases."),
        praises=("No fluff, thanks.", "I like that there is no filler."),
    ),
    Wish(attribute="filler", value=True): Phrases(
        complaints=(
            "Be more friendly.", "A little warmth, please.", "You sound cold.", "Be nicer to me.",
            "Please sound more kind.", "Say something nice as well.",
        ),
        held_out_complaints=("Please be friendly.", "Sound nicer please.", "Be kind, you sound cold."),
        praises=("So friendly, thanks.", "I like how warm you sound."),
    ),
    Wish(attribute="emoji", value=False): Phrases(
        complaints=(
            "No emojis please.", "Please stop using emojis.", "Letters only, please.", "Leave out the smileys.",
            "Skip the icons.", "I dislike emojis.",
        ),
        held_out_complaints=("Leave out the icons.", "No smileys please.", "Stop using emojis."),
        praises=("No icons, thanks.", "I like that it has no smileys."),
    ),
    Wish(attribute="emoji", value=True): Phrases(
        complaints=(
            "Add an emoji.", "I want a smiley.", "Show me a happy face.", "Where is the emoji?",
            "Put a little face at the end.", "Decorate it a bit.",
        ),
        held_out_complaints=("Add a smiley at the end.", "Use a happy face please.", "I want an emoji."),
        praises=("Lovely emoji, thanks.", "I like the happy face."),
    ),
    Wish(attribute="bold", value=False): Phrases(
        complaints=(
            "No bold please.", "Stop using bold text.", "Remove the stars.", "Plain text please.",
            "Leave out the markdown.", "Without bold, please.",
        ),
        held_out_complaints=("Leave out the bold.", "No markdown please.", "Stop using stars."),
        praises=("Plain text, thanks.", "I like that nothing is bold."),
    ),
    Wish(attribute="bold", value=True): Phrases(
        complaints=(
            "Put the answer in bold.", "Use bold text.", "Highlight the answer.", "Make the key word bold.",
            "Where is the bold?", "Bold the answer, please.",
        ),
        held_out_complaints=("Highlight the key word.", "Make the answer bold.", "Use bold please."),
        praises=("Good use of bold, thanks.", "I like the bold answer."),
    ),
}  # fmt: skip

PRAISES = (
    "Perfect, thanks.", "Great, thank you.", "That is right.", "Nice one!", "Exactly what I needed.", "Good, thanks!",
)  # fmt: skip
HELD_OUT_PRAISES = ("Great, exactly right.", "Perfect, that is what I needed.")
