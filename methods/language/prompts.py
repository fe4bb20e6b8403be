"""What a language model is asked: our own wordings of the tasks of LC-Rec, LETTER and EAGER-LLM.

A wording is a pair (before, after): what stands before the input (a history, a title, a code) and after it; the answer
follows. Wording 0 of a task is the one used at test. In ``sequence`` training the answer follows the history itself, so
its wordings have nothing after the input.
"""

Wording = tuple[str, str]

SEQUENCE: tuple[Wording, ...] = (
    ("A person took these items, oldest first:", "The item they take next:"),
    ("History in order of time:", "Continue the history with one item:"),
    ("So far this user has chosen", "What will the user choose now?"),
    ("Given the following interactions", "name the item that comes next."),
    ("Items a customer bought one after the other:", "The next purchase will be"),
    ("Here is what someone liked, from the first to the latest:", "Recommend the next item:"),
    ("Look at this sequence of items:", "Which item follows?"),
    ("After interacting with", "the user will most likely turn to"),
)
OPEN_SEQUENCE: tuple[Wording, ...] = (("A person took these items, oldest first:", ""),)
VARIED_OPEN_SEQUENCE: tuple[Wording, ...] = (
    *OPEN_SEQUENCE,
    ("History in order of time:", ""),
    ("So far this user has chosen", ""),
    ("Items a customer bought one after the other:", ""),
    ("Here is what someone liked, from the first to the latest:", ""),
    ("Follow this sequence of items:", ""),
    ("One interaction after another:", ""),
    ("The user's path through the catalogue:", ""),
)
ITEM_TO_CODE: tuple[Wording, ...] = (
    ("An item is called", "Its code is"),
    ("Find the code of the item described as", "Code:"),
    ("Which code stands for", "?"),
    ("Title and details:", "Write the item's code:"),
    ("This text belongs to one item:", "That item is"),
    ("Give the identifier of the product", "Identifier:"),
    ("Translate into an item code:", "Answer:"),
    ("Someone looks for", "in the catalogue. It is stored under"),
)
CODE_TO_ITEM: tuple[Wording, ...] = (
    ("The item", "is called"),
    ("Write the title of", "Title:"),
    ("What does the code", "stand for?"),
    ("Describe the item", "in words:"),
    ("The catalogue lists", "under the name"),
    ("Tell a reader what", "is:"),
    ("Translate the code", "into text:"),
    ("Which product is", "?"),
)
CODE_TO_TITLE: tuple[Wording, ...] = (
    ("The title of", "is"),
    ("Name the item", "by its title:"),
    ("What does the catalogue call", "? It calls it"),
    ("On the label of", "stands"),
    ("Code", "has the title"),
    ("Turn the code", "into a title:"),
    ("A shop lists", "as"),
    ("Which name belongs to", "? The name"),
)
CODE_TO_DETAILS: tuple[Wording, ...] = (
    ("All that is known of", ":"),
    ("Describe", "in detail:"),
    ("The page of", "reads"),
    ("Name and kind of", "are"),
    ("Write what a buyer should know of", ":"),
    ("Details of the code", "are these:"),
    ("Tell everything about", ". It is"),
    ("A full description of", "would be"),
)
CODE_TO_DESCRIPTION: tuple[Wording, ...] = (
    ("The description of", "is:"),
    ("In the words of its seller,", "is"),
    ("What is written about", "? It says:"),
    ("Copy the text on", ":"),
    ("Explain the item", "to a buyer:"),
    ("The item", "is described so:"),
    ("Turn the code", "into a description:"),
    ("About", "the catalogue tells:"),
)
TITLES_TO_CODE: tuple[Wording, ...] = (
    ("A person took, oldest first:", "The code of the item they take next:"),
    ("By name, the history reads", "Continue it with one item code:"),
    ("Titles in order of time:", "Next item, as a code:"),
    ("The user has chosen", "Predict the code of the next choice:"),
    ("Bought one after the other:", "The next purchase has the code"),
    ("Someone liked", "Recommend one item by its code:"),
    ("Given the named items", "which code follows?"),
    ("After", "the user will most likely turn to"),
)
CODES_TO_TITLE: tuple[Wording, ...] = (
    ("A person took these items, oldest first:", "The title of the item they take next:"),
    ("History in order of time:", "Name the next item in words:"),
    ("So far this user has chosen", "What is the next choice called?"),
    ("Given the following interactions", "write the title that comes next:"),
    ("Items a customer bought one after the other:", "The next purchase is called"),
    ("From the first to the latest:", "Describe the item to recommend now:"),
    ("Look at this sequence of items:", "Title of the one that follows:"),
    ("After interacting with", "the user will most likely want"),
)
SEARCH: tuple[Wording, ...] = (
    ("Someone wants", "A fitting item:"),
    ("Query:", "Item:"),
    ("A user searches for", "The search returns"),
    ("I need something like", "You could take"),
    ("Looking for", "Best match:"),
    ("Find an item about", "Found:"),
    ("Keywords:", "The item meant by them:"),
    ("The user's wish is", "It is met by"),
)
PREFERENCE: tuple[Wording, ...] = (
    ("A person took these items, oldest first:", "In general they like"),
    ("From the history", "describe the user's taste:"),
    ("So far this user has chosen", "Their interests are"),
    ("What does someone want who took", "? They want"),
    ("Summarise the preferences behind", "Summary:"),
    ("Items a customer bought one after the other:", "The customer cares about"),
    ("Look at this sequence of items:", "The common themes are"),
    ("After interacting with", "one can say that the user prefers"),
)

OF_LC_REC = (
    SEQUENCE, OPEN_SEQUENCE, ITEM_TO_CODE, CODE_TO_ITEM, TITLES_TO_CODE, CODES_TO_TITLE, SEARCH, PREFERENCE,
)  # fmt: skip
OF_EAGER_LLM = (
    SEQUENCE, VARIED_OPEN_SEQUENCE, ITEM_TO_CODE, CODE_TO_TITLE, CODE_TO_DETAILS, CODE_TO_DESCRIPTION, TITLES_TO_CODE,
    CODES_TO_TITLE, PREFERENCE,
)  # fmt: skip
