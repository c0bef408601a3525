"""The built-in model's tokenizer: byte-level BPE trained on question text.

Text is cut so that what a record repeats can become one token: a line's name (`\\nAge (years): `), a choice's
letter (`\\nB. `), a value. Digits stand alone, so that a number is read digit by digit.
"""

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

PIECES = r"\n?\\boxed\{|\}|\n[A-E]\. |\n*\[[^\]\n]*\]|\n*[^\n:\[\]]{1,80}: ?|\n+|\d|[.\-]"
SYSTEM, END, PAD = "<|system|>", "<|end|>", "<|pad|>"
# The system text is the same in every question, so the built-in model reads it as one token.
TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'system' %}" + SYSTEM + "{% else %}{{ turn.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n' }}{% endif %}"
)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens; the same texts give the same tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(PIECES), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, SYSTEM],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=TEMPLATE, padding_side="left"
    )
