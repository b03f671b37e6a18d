"""Run as a script, in a process of its own: embed.py of a bundle as one who has no guie would run it.

`python -I -S alone.py EMBED HIDDEN FOLDERS ARGUMENT...`: FOLDERS (joined by the path separator) are where
packages live; those named in HIDDEN (joined by commas) cannot be imported. Says so and ends with exit code 1
where one of them came in by another door.
"""

import os
import runpy
import sys


def main():
    """Run, then look whether something hidden came in."""
    embed, hidden, folders, *arguments = sys.argv[1:]
    sys.path += folders.split(os.pathsep)
    names = hidden.split(",")
    sys.modules.update(dict.fromkeys(names))  # None: neither found nor imported
    code = runpy.run_path(embed)["main"](arguments)
    smuggled = [name for name in names if sys.modules.get(name) is not None]
    if smuggled:
        print(f"it imported {', '.join(smuggled)}, and must do without", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
