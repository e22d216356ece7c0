"""Rules that tell whether a follow-up complains about the answer, from its first words; no model and no judge.

A complaint says that the answer was wrong, unwanted or misunderstood, or requests the same thing in another way:
shorter, again, without something. Thanks, a reply to a question and the next question are not complaints. The rules
are for English, and they err. Two policies that are compared are measured with the same error, which costs statistical
power, not validity.
"""

import re

HEAD_CHARS = 160
"""Only these first characters are read: later ones are about other things."""

_NT = re.compile(r"\b(do|did|does|is|are|was|were|wo|ca)nt\b")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_POLITE = re.compile(
    r"^(?:(?:ok(?:ay)?|h+m+|uh+m*|um+|well|so|oh|ah|alright|all right|yeah|yes|sorry|hey|hi|please|and|but|actually|"
    r"honestly|i think|got it)\b[\s,.!-]*)+"
)
_THANKS = re.compile(
    r"^(?:many |so )?(?:thank|thanks|thx\b|ty\b|great|perfect|nice|good|love|lovely|excellent|awesome|amazing|wow|cool|"
    r"exactly|correct\b|looks good|sounds|neat|true\b|i (?:really )?(?:like|love)\b|"
    r"(?:this|that|it)(?:'s| is| was| looks| sounds)(?: (?:a|so|very|really|just|all|pretty))* "
    r"(?:great|good|perfect|nice|excellent|helpful|right|correct|interesting|lovely|fine|fair|useful|what i|exactly))"
)
_THANKED = re.compile(r"^(?:[\w'-]+[\s,]+){1,5}(?:thanks|thank you)\W*$")
_REPLIED = re.compile(
    r"^no(?:pe)?\W+(?:i (?:haven't|have not|didn't|did not|am not|was not)\b|i'm not sure|not (?:yet|at all)|thank|"
    r"problem|worries|need\b|it'?s (?:ok|fine)|that'?s (?:all|it|ok|fine))"
)

_BUT = re.compile(
    r"\b(?:but|however|although|though)\b,? (?:seriously|please|can you|could you|what exactly|"
    r"i (?:want|need|was|asked|meant|said|actually|don't|do not|can't|cannot|"
    r"am (?:looking|talking|asking)|would (?:like|prefer|rather))|i'm (?:looking|talking|asking)|"
    r"i'd (?:like|prefer|rather)|you(?:'re| are| didn't| did not| forgot)|"
    r"(?:that|this|it|those|they)(?:'s| is| are|'re) (?:not|too|wrong))"
)
_REFUSED = re.compile(
    r"^(?:wrong|incorrect|nonsense|false\b|no(?:pe)?[,.!]+ \w|too \w+|"
    r"not (?:quite|really|what|that|right|true|correct|good|helpful|funny|it\b|sure what you))"
    r"|^(?:this|that|it|those|these|they|both|all|some|the \w+)\b[^.?!]{0,60}?\b(?:"
    r"(?:is|are|was|were|did|does|do)(?: not|n't)|(?:'s|'re) not|wrong|incorrect|(?:way )?too \w+|"
    r"makes no|disappoint\w*|out of my|useless|missing)\b"
    r"|\b(?:(?:is|are|was|were|be|seems?|looks?|way|'s|'re) (?:\w+ )?(?:wrong|incorrect)|not correct|makes? no sense|"
    r"(?:do|does|did)(?: not|n't) (?:seem|make sense|work|answer|help)|isn't (?:right|correct|true|what)|"
    r"no idea what you|don't (?:get it|understand)|still don't|confused by|(?:is|are|'s|'re) actually|no need to)\b"
)
_MEANT = re.compile(
    r"^i (?:said|asked|meant?|thought|did(?: not|n't) (?:ask|mean|want|say)|dislike|hate|wouldn't say|"
    r"(?:do not|don't) (?:(?:think|believe) (?!i\b|so\b|s?he\b|they\b|we\b)|like|want|see any)|"
    r"(?:just|only|actually) (?:need|want)|(?:am|'m) (?:talking|not interested|unsure)|"
    r"want (?:one|more|less|explicit)\b|want a (?!\w+ (?:with|for)\b))"
    r"|^i(?:'ve| have) already\b|^i'm (?:not interested|not finding|(?:just )?(?:looking for|talking about))"
    r"|^we're talking about"
    r"|^(?:like|as) i said|^what i (?:mean|meant|want)|^let's just\b|^by \".*\" i mean"
    r"|\bi was (?:really )?(?:just )?(?:hoping|looking|thinking more)\b|\bi (?:actually|really just) (?:need|want)"
    r"|\bthat is why i\b|^why (?:did|are) you\b|^do you (?:even |actually )?(?:know|understand) (?:anything|what i)"
    r"|^you(?:'re| are)? (?:not\b|already|forgot|missed|ignored|misunderst\w+|did(?: not|n't)|got\b|keep\b|sound|never|"
    r"suck|only\b|just\b|wrong|(?:can't|cannot|don't)(?: \w+)? (?!imagine|believe)|digress\w*)"
)  # fmt: skip
_OTHERWISE = re.compile(
    r"^(?:(?:can|could|would|will) you (?:please |just )?|now please |just )?"
    r"(?:re-?(?:write|phrase|do|formulate|word|state|try)\b|try (?:it |this |that )?again|"
    r"do (?:it|this|that) (?:again|over|in)|do(?: not|n't)\b|shorten|simplify|condense|trim|"
    r"summari[sz]e (?:it|this|what|your|the above)|narrow (?:it|this|that)|correct\b|fix\b|change\b|remove|drop\b|"
    r"delete|skip|cut\b|leave out|stop\b|avoid|omit|make (?:it|this|that|the|your)\b(?! output)|"
    r"keep it (?:short|brief|simple|concise|under|to\b)|"
    r"be (?:more|less|a bit|a little|nicer|kind|friendl\w+|brief|concise|specific|short|clear)|sound\b|"
    r"use (?!it\b|this\b|that\b)|add\b|put\b|highlight|bold\b|decorate|include|consider inclu|finish|"
    r"complete (?:it|your|the)|write (?:it|this|that|these|those)\b|"
    r"explain (?:it|that|this|more|again|in|with|a (?:bit|little)|further|yourself|simply)|"
    r"(?:give|provide|show)(?: me| us)? (?:more|less|fewer|shorter|another way|a shorter|a simpler)|"
    r"(?:write|answer|say|reply|respond)\b[^.?!]*\b(?:words?|sentences?|bullets?)\b)"
    r"|^(?:more|less|fewer|shorter|longer|simpler|clearer|without|instead of|only the)\b"
    r"|^just (?:the|one|find|give|tell)\b"
    r"|^(?:one|a single|two|three) (?:\w+ ){0,2}(?:is|are|will be|would be) enough"
    r"|^tell me more(?: about (?:it|that|this))?\W*$"
    r"|^(?!yes|sure|go ahead|continue|any|can|could|would|what|how|the same)(?:[\w'-]+[\s,]+){1,5}please\W*$"
)


def is_dissatisfied(follow_up: str) -> bool:
    """Whether the follow-up complains about the answer before it."""
    text = " ".join(follow_up[:HEAD_CHARS].lower().replace("\u2019", "'").split())
    text = _NT.sub(r"\1n't", text)
    if _BUT.search(text):
        return True
    words = _POLITE.sub("", text)
    if _THANKS.match(words) or _THANKED.match(words) or _REPLIED.match(words):
        return False
    if _OTHERWISE.match(words):
        return True
    return any(_REFUSED.search(each) or _MEANT.search(each) for each in _SENTENCE.split(words))
