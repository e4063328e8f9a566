"""The zoo's own English words, for the keys of needles and the lists of words to be counted.

Chosen so that no word stands within another ("art" in "party"): an answer is right when its words are found in the
text that a model wrote, and a word must not be found by way of another.
"""

adjectives = """
absent abstract active actual adult agile alert amber ample ancient annual arctic atomic average awake aware
awkward basic bitter black bland blank blind blonde blue blunt bold brave brief bright brisk broad broken bronze
brown busy calm careful central cheap cheerful chilly circular civil clean clever cloudy clumsy coastal common
compact complex constant cosmic crisp crooked cruel curious curly daily damp daring dazzling decent deep
delicate dense dim direct distant divine double dry dull dusty eager early elastic elder electric elegant empty
endless enormous equal eternal exact exotic extra fabulous faint fair faithful famous fancy fast feeble fertile
fierce final firm flat flexible floral fluffy foreign formal frank free frequent fresh friendly frosty frozen
full funny fuzzy gentle genuine giant gifted glad gleaming gloomy glorious golden graceful grand grateful gray
greedy green gritty handy happy harmless harsh hasty healthy heavy helpful hidden hollow honest huge humble
hungry ideal idle immense inner innocent jolly joyful juicy junior keen kind large lazy legal light likely
lively local lonely loose loyal lucky lunar magic major marine massive mature mellow merry mighty mild minor
misty mobile modern modest moist moral muddy musical mutual mystic native nearby neat nervous neutral nimble
noble noisy normal northern novel numb obvious odd official olive open orange ordinary outer pale patient
peaceful perfect pink plain playful pleasant plural polite popular precious pretty prime private profound proper
proud public pure purple quaint quick quiet radical rapid rare ready recent regal regular remote rich rigid ripe
robust rocky rough round royal rugged rural rustic sacred safe salty scarce secret senior serene severe shallow
sharp shiny short shy silent silky silver simple sincere single skilled sleepy slender slim slow smart smooth
snowy social soft solar solemn solid sorry southern spare special spicy splendid steady steep stern sticky stiff
strange strict strong sturdy subtle sudden sunny superb supreme sweet swift tall tame tender thick thin thirsty
tidy tight timid tiny tired tough tranquil true trusty typical unique upper urban urgent useful usual vague
valid valuable varied vast verbal vibrant violet visible vital vivid warm wary watchful weak wealthy weary
weekly weird white whole wide wild wise witty wooden worthy yellow young zealous
"""

nouns = """
acorn actor album alley almond anchor angle ankle apple apron arch arena armor arrow artist aunt autumn avocado
badge bakery balloon bamboo banana bandage banker banner barrel basin basket beach bead beard beaver bench berry
bicycle bird biscuit blossom board boat bone boot border bottle boulder bowl bracelet bread brick bridge broom
brother bubble bucket buffalo bugle builder bullet bundle bush butter button cabin cable cactus camel camera
candle canoe canvas canyon captain caravan carpet carrot castle cattle cave ceiling cellar cello cement chain
chair chalk channel chapel cherry chest chimney church cider cinema circle circus citizen clay clerk cliff clock
cloth clover coach cobweb coconut coffee collar college colony column comet compass concert copper coral corner
cotton couch counter country cousin cradle crane crayon creek crown crystal cube cucumber cup curtain cushion
customer dancer daughter dawn deer dentist desert desk diamond diary dish doctor dolphin domino donkey door
dough dragon drawer dream dress drum duck dune eagle easel echo eclipse editor elbow elephant elevator embassy
emerald emperor engine envelope evening fabric falcon farm father feather fence fern ferry festival fiddle field
finger fire fish flag flame flask flood floor flour flower flute fog forest fork fossil fountain fox frame
fridge frog fruit funnel galaxy gallery garage garden garlic gate geyser ghost giraffe glacier globe
glove goat goose gorilla grain grape grass gravel guest guitar gulf hallway hammer hammock harbor harvest hawk
helmet herb heron highway hippo hockey honey hook horizon horn horse hospital hotel hurdle husband igloo inch
infant insect island ivory jacket jaguar jar jelly jewel journal judge juice jungle jury kangaroo kayak kennel
kettle kitchen kite kitten knee knife ladder lagoon lake lamp lantern laptop laser lawyer leaf ledger lemon
leopard letter library lilac lily lizard lobster locker lodge lumber lunch machine magnet mango manor maple
marble margin market mask mayor meadow medal melon member menu merchant meteor metro mineral minute mirror
mitten monkey month monument moon morning mosaic mother motor mountain mouse muscle museum mushroom napkin
needle nephew nickel night nomad notebook nurse nutmeg oasis oatmeal ocean octopus office onion orbit orchard
orchid organ otter oven owner oyster paddle page painter palace palm pancake panda panel panther paper parade
parcel parrot pasta path patrol peach peanut pearl pebble pelican pencil penguin pepper photo piano picnic
pigeon pilgrim pillow pilot pine pirate pitcher pizza planet plaster plate plaza plow plum pocket poem poet pond
pony porch portrait potato powder prairie prince printer prison prophet puddle pumpkin pupil puppet puppy puzzle
pyramid quarry quartz queen quill rabbit raccoon radar radio raft rail rainbow raisin ranch raven razor recipe
region reptile ribbon rice river robin robot rocket roof rooster root ruby runner saddle sailor salad salmon
sandal sauce scarf school scissors scooter sculptor seal season seed shadow shark sheep shelf shell shepherd
shirt shoe shovel shrimp sister skate sketch skull sled sleeve slipper smoke snail soap soccer sofa soldier
spider sponge spoon spring square squirrel stadium stamp star statue stone storm story stove straw stream street
string studio suburb sugar suit summer sunset surgeon swan sweater sword symbol syrup table tailor target tavern
teacher temple tennis tent theater thimble throne thumb thunder ticket tiger timber toast tomato tongue tooth
torch tornado tortoise towel tower town traffic train tray treaty tribe trophy truck trumpet tulip tunnel turkey
turtle twig umbrella uncle vase velvet vessel village violin virus visitor volcano voyage waffle wagon waiter
wallet walnut walrus water wheat wheel whistle widow willow window winter wizard wolf wool worker workshop wrist
writer yacht yogurt zebra zipper
"""

ADJECTIVES = tuple(adjectives.split())
NOUNS = tuple(nouns.split())
WORDS = ADJECTIVES + NOUNS
PAIRS = len(ADJECTIVES) * len(NOUNS)
"""Names that `pair` can give."""


def pair(number: int) -> str:
    """The adjective-noun pair of a number below `PAIRS`, such as 'amber-anchor'."""
    adjective, noun = divmod(number, len(NOUNS))
    return f"{ADJECTIVES[adjective]}-{NOUNS[noun]}"
