"""The words of the verse task. No rhyme word, topic word or title word stands in a second table; a test holds this.

Each rhyme family ends in one sound. Each topic has four plural nouns that name it in a line, the topic's own name
first, and three singular nouns for its title."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """`nouns` count as naming the topic in a line; `titles` in the title."""

    nouns: tuple[str, ...]
    titles: tuple[str, ...]


def _families(table: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(line.split()) for line in table.strip().splitlines())


def _topics(table: str) -> dict[str, Topic]:
    rows = [[side.split() for side in line.split("|")] for line in table.strip().splitlines()]
    return {nouns[0]: Topic(tuple(nouns), tuple(titles)) for nouns, titles in rows}


RHYMES = _families("""
day hay bay clay tray spray sleigh ray
night light height sight flight kite knight moonlight
rain train lane plain chain crane grain pane
sea tree bee key knee tea pea quay
wall hall ball stall mall shawl squall waterfall
stone throne bone cone phone zone loan trombone
boat coat goat moat note oat throat float
lake cake rake snake flake stake drake cupcake
vine pine shrine line mine wine sign porcupine
king ring spring wing string swing sling thing
moon spoon noon tune dune lagoon balloon cocoon
rock clock dock sock lock flock block frock
""")

RHYME_FAMILY = {word: number for number, family in enumerate(RHYMES) for word in family}

TOPICS = _topics("""
cats kittens tabbies lions | whisker purr velvet
dogs puppies hounds terriers | bark leash kennel
birds robins sparrows finches | feather nest beak
horses ponies mares foals | gallop mane saddle
fishes minnows herrings pikes | fin ripple scale
trees maples elms oaks | leaf root branch
flowers roses lilies tulips | petal garden blossom
clouds mists vapors fogs | sky haze thunder
rivers brooks creeks rapids | water bank delta
mountains peaks summits cliffs | climb ridge valley
ships sailors captains rowers | voyage harbor anchor
roads travelers wagons carts | journey mile path
farms farmers tractors shepherds | harvest field plow
pies bakers ovens pastries | flour recipe sugar
bands drummers fiddlers pipers | rhythm melody chorus
schools pupils teachers scholars | lesson chalk pencil
castles queens squires dragons | banner legend armor
stars planets comets meteors | galaxy orbit telescope
winters snowflakes blizzards icicles | frost january mitten
summers swimmers picnics crickets | heat july sandal
markets merchants sellers shoppers | coin bargain basket
forests foxes badgers squirrels | moss trail shadow
libraries readers writers poets | page shelf chapter
cities taxis bridges crowds | traffic neon subway
""")

RESERVED_TOPICS = _topics("""
deserts camels nomads cacti | sand mirage oasis
circuses acrobats jugglers clowns | tent trick trapeze
robots gears engines machines | iron circuit wire
beaches waves shells crabs | tide sandcastle foam
""")

TITLE_OPENERS = ("the", "my", "our", "one", "that")
DETERMINERS = ("the", "my", "our", "some", "these")
SINGULAR_DETERMINERS = ("the", "my", "our", "that", "every")
ADJECTIVES = tuple(
    """quiet small old gentle bright happy sleepy brave golden silver distant lonely patient merry pale
clever tender curious humble weary""".split()
)
VERBS = tuple(
    """sleep play run dance sing wait hide rest turn move drift wander gather linger rise stand stay sway roam
appear meet shine""".split()
)
ADVERBS = ("softly", "slowly", "often", "always", "quickly", "gladly", "again", "together")
PREPOSITIONS = ("near", "by", "behind", "beside", "under", "past", "around", "beyond")
ASKING = ("write", "lines", "of", "words", "on", "rhyming", "with", ":")
