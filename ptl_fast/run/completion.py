"""``ptl-fast completion bash|zsh``: a script that has the shell complete subcommands and flags."""

import argparse

from ptl_fast.config.checking import flag
from ptl_fast.config.config import HINTS
from ptl_fast.config.values import choices
from ptl_fast.run.subcommands import SUBCOMMANDS

# Of the two subcommands that take settings; all others complete names of files.
SCRIPT = """{zsh}_ptl_fast() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{subcommands}"
    elif [[ "$word" == --* ]]; then
        case "${{COMP_WORDS[1]}}" in compress|estimate) words="{flags}" ;; esac
    else
        case "$before" in
{choices}
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    else
        COMPREPLY=($(compgen -f -- "$word"))
    fi
}}
complete -o filenames -F _ptl_fast ptl-fast"""
ZSH = "autoload -Uz compinit bashcompinit && compinit && bashcompinit\n"


def main(arguments: list[str]) -> int:
    """Print the script; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ptl-fast completion",
        description='Print a script for the shell: eval "$(ptl-fast completion bash)", for example'
        " in ~/.bashrc.",
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    print(script(parser.parse_args(arguments).shell))
    return 0


def script(shell: str) -> str:
    """The script for bash or zsh."""
    flags = ["--config", "--help", *map(flag, HINTS)]
    cases = [
        f'            {flag(name)}) words="{" ".join(found)}" ;;'
        for name in HINTS
        if (found := choices(name))
    ]
    return SCRIPT.format(
        zsh=ZSH if shell == "zsh" else "",
        subcommands=" ".join(SUBCOMMANDS),
        flags=" ".join(flags),
        choices="\n".join(cases),
    )
