"""Run as a script, in a process of its own: embed.py of a bundle as one who has no guie would run it.

`python -I -S alone.py EMBED HIDDEN FOLDERS ARGUMENT...`: FOLDERS (joined by the path separator) are where
packages live; those named in HIDDEN (joined by commas) cannot be imported. Says so and ends with exit code 1
where one of them came in by another door.
"""

import os
import runpy
import sys


class Absent:
    """A finder that hides packages."""

    def __init__(self, hidden):
        self.hidden = hidden

    def find_spec(self, name, path=None, target=None):
        """Refuse a hidden name, leave every other to the finders behind."""
        if name.partition(".")[0] in self.hidden:
            raise ModuleNotFoundError(f"{name} is kept out", name=name)


def main():
    """Run, then look whether something hidden came in."""
    embed, hidden, folders, *arguments = sys.argv[1:]
    sys.path += folders.split(os.pathsep)
    sys.meta_path.insert(0, Absent(hidden.split(",")))
    code = runpy.run_path(embed)["main"](arguments)
    smuggled = [one for one in hidden.split(",") if one in sys.modules]
    if smuggled:
        print(f"it imported {', '.join(smuggled)}, and must do without", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
