"""The words of the synthetic medical data: people, drugs, symptoms, numbers.

Everything whose name starts with ``NEW_`` occurs in ``held_out.jsonl`` only.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


def _phrases(text: str) -> list[str]:
    return [phrase.strip() for phrase in text.split(",")]


FIRST = _words(
    """Anna John Fatima Peter Maria David Lena Omar Grace Ivan Julia Mark Sofia Daniel Emma
Paul Hannah Ahmed Laura Simon Nadia Victor Clara Hugo Irene Felix Teresa Oscar Monica George
Alice Stefan Leila Martin Helen Andre Rosa Thomas Eva Karim"""
)
LAST = _words(
    """Weber Miller Khan Novak Lopez Cohen Fischer Said Hall Petrov Costa Evans Rossi Kim Jensen
Berger Walker Silva Meyer Dubois Larsen Kowalski Brown Singh Moreau Baker Horvat Schmidt Young
Garcia Turner Nguyen Becker Martins Wright Santos Keller Murphy Olsen Ricci"""
)
NEW_FIRST = _words(
    """Nils Aisha Tomasz Ruth Greta Samir Beatriz Yuki Owen Carmen Zoë Lucjan Ingrid Farid
Mabel Renée Kofi Paloma Dmitri Sunniva"""
)
NEW_LAST = _words(
    """Haugen Bello Hruby Okoye Lindqvist Haddad Castellan Mori Pryce Ibarra Achterberg
Vasile Nakamura Quist Fonseca Mbeki Łukasik Tanaka Delacroix Åberg"""
)

DRUGS = _words(
    """ibuprofen metformin lisinopril paracetamol omeprazole atorvastatin amlodipine naproxen
cetirizine amoxicillin sertraline losartan prednisone furosemide gabapentin warfarin tramadol
simvastatin ramipril diclofenac pantoprazole bisoprolol doxycycline citalopram levothyroxine
metoprolol azithromycin codeine fluoxetine loratadine clopidogrel insulin digoxin spironolactone
diazepam melatonin famotidine cefuroxime montelukast salbutamol budesonide tiotropium apixaban
venlafaxine bupropion topiramate sumatriptan meloxicam celecoxib colchicine methotrexate
hydroxyzine ondansetron loperamide fluticasone verapamil diltiazem enalapril telmisartan
pravastatin glipizide sitagliptin empagliflozin pregabalin baclofen clonazepam trazodone
risperidone lamotrigine valaciclovir clindamycin fluconazole terbinafine finasteride"""
)
NEW_DRUGS = _words(
    """valsartan ciprofloxacin escitalopram allopurinol carvedilol rosuvastatin duloxetine
nitrofurantoin tamsulosin lansoprazole candesartan mirtazapine quetiapine propranolol torasemide
rivaroxaban dapagliflozin rizatriptan etoricoxib desloratadine formoterol cephalexin
levetiracetam amitriptyline domperidone mesalazine bumetanide nebivolol ezetimibe olanzapine
zolvarine brectomab kefluxone tarnidol ospravil quandopril velociban druxamide plimazol sertovane
gaxotil nombrelin yucarpine hexavorin"""
)

ALLERGENS = _phrases("penicillin,latex,peanut,pollen,shellfish,sulfa,egg,nickel,wasp venom")
NEW_ALLERGENS = _phrases("iodine,kiwi,soy,cat hair,gluten,mold,ragweed,lanolin")

# --- symptoms -----------------------------------------------------------------------------------
# A symptom is "<quality> <feeling> <place>" or "<quality> <noun>". The place or the noun is its
# deciding word: it alone fixes the specialty, in training and in the held-out data alike.
FEELINGS: dict[str, list[str]] = {
    "general": ["pain", "ache", "pressure", "swelling"],
    "cardiology": ["pain", "ache", "pressure", "tightness"],
    "orthopedics": ["pain", "ache", "stiffness", "swelling"],
    "gastroenterology": ["pain", "ache", "pressure", "cramps"],
    "neurology": ["pain", "ache", "pressure", "tightness"],
}
# {side} becomes "left ", "right " or nothing. The last word of the place is the deciding word.
PLACES: dict[str, list[str]] = {
    "general": ["in the throat", "in the {side}ear", "around the nose", "in the sinuses"],
    "cardiology": ["in the chest", "behind the breastbone", "around the heart"],
    "orthopedics": [
        "in the {side}knee",
        "in the {side}shoulder",
        "in the {side}hip",
        "in the {side}ankle",
        "in the {side}elbow",
        "in the {side}wrist",
        "in the lower back",
        "in the {side}heel",
    ],
    "gastroenterology": ["in the stomach", "in the belly", "in the abdomen"],
    "neurology": ["in the head", "behind the {side}temple"],
}
# Deciding words that also stand before the feeling: "dull knee pain".
COMPOUNDS = _words("throat ear chest knee shoulder hip ankle elbow wrist back heel stomach belly")
NOUNS: dict[str, list[str]] = {
    "general": ["cough", "fatigue", "chills", "sneezing"],
    "cardiology": ["heartbeat", "palpitations", "pulse"],
    "orthopedics": [],
    "gastroenterology": ["nausea", "diarrhea", "heartburn", "bloating"],
    "neurology": ["headache", "migraine", "dizziness", "tremor", "numbness", "tingling"],
    "dermatology": ["rash", "spots", "blisters", "hives", "bumps", "itching", "patches"],
}
# Where some nouns may sit. These places never decide: no other specialty uses them.
NOUN_PLACES: dict[str, list[str]] = {
    "dermatology": [
        *[""] * 4,  # mostly no place at all
        "on the {side}cheek",
        "on the {side}forearm",
        "on the scalp",
        "on the legs",
    ],
    "numbness": ["in the fingers", "in the {side}hand"],
    "tingling": ["in the fingers", "in the {side}hand"],
}
FEELING_QUALITIES = _words(
    """burning dull throbbing stabbing sharp nagging pulsing constant sudden
recurring stubborn nightly"""
)
NOUN_QUALITIES: dict[str, list[str]] = {
    "default": _words("constant sudden recurring stubborn nightly daily frequent lasting odd"),
    "dermatology": _words("red itchy scaly burning dry weeping raised crusty recurring sudden"),
    "cough": _words("dry barking rattling constant recurring stubborn nightly frequent"),
    "heartbeat": _words("racing irregular fast fluttering pounding skipping uneven unsteady"),
    "pulse": _words("racing irregular fast fluttering pounding skipping uneven unsteady"),
    "headache": _words("dull throbbing stabbing pulsing constant sudden recurring nightly"),
}
NEW_QUALITIES = _words("lingering strange repeated peculiar")
# Feelings and nouns that take "a" in a spoken sentence.
COUNTABLE = set(_words("pain ache swelling rash headache migraine tremor cough heartbeat pulse"))

# --- numbers ------------------------------------------------------------------------------------
AGES = [age for age in range(18, 92) if age % 3]
NEW_AGES = [age for age in range(18, 92) if not age % 3]
# Whole degrees are left out: "39" and "39.0" would be the same number in two spellings.
TENTHS = [tenths for tenths in range(366, 404) if tenths % 10 and tenths % 3]
NEW_TENTHS = [tenths for tenths in range(366, 404) if tenths % 10 and not tenths % 3]
COUNTS = _words("2 3 4 5 6 8 10 12 two three four five six eight ten twelve")
NEW_COUNTS = _words("7 9 11 13 15 seven nine eleven thirteen fifteen")
UNITS = ["hours", "days", "days", "weeks", "weeks", "months"]
SINGLE_DURATIONS = ["a day", "one day", "a week", "one week", "a month", "one month", "a year"]
MILLIGRAMS = [5, 10, 20, 25, 40, 50, 75, 100, 150, 200, 250, 300, 400, 500, 600, 800, 1000]
NEW_MILLIGRAMS = [15, 30, 35, 60, 90, 120, 175, 225, 350, 450, 650, 750, 850]
OTHER_DOSES = _phrases(
    """1 tablet,2 tablets,1 puff,2 puffs,5 drops,10 drops,20 drops,5 ml,10 ml,15 ml,
10 units,12 units,20 units,25 mcg,50 mcg,100 mcg"""
)
NEW_OTHER_DOSES = _phrases(
    """3 tablets,4 tablets,3 puffs,4 puffs,8 drops,15 drops,30 drops,8 ml,20 ml,
25 ml,14 units,18 units,24 units,75 mcg,125 mcg,200 mcg"""
)
FREQUENCIES = _phrases(
    """once a day,twice a day,three times a day,every morning,every evening,at bedtime,
every six hours,every eight hours,every twelve hours,when needed,with meals,
once a week"""
)
