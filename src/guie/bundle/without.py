"""Run as a script, in a process of its own: embed.py of a bundle as one who has no guie would run it.

`python -I -S without.py EMBED HIDDEN ARGUMENTS FOLDER...`: ARGUMENTS are embed.py's, as JSON; FOLDERs are
where packages live; those named in HIDDEN (joined by commas) cannot be imported. Says so and ends with exit
code 1 where one of them came in by another door.
"""

import json
import runpy
import sys


def main():
    """Run, then look whether something hidden came in."""
    embed, hidden, arguments, *folders = sys.argv[1:]
    sys.path += folders
    names = hidden.split(",")
    for name in names:
        sys.modules[name] = None  # type: ignore[assignment]  # neither found nor imported
    code = runpy.run_path(embed)["main"](json.loads(arguments))
    smuggled = [name for name in names if sys.modules.get(name) is not None]
    if smuggled:
        print(f"it imported {', '.join(smuggled)}, and must do without", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
