#!/usr/bin/env python3
"""The man pages that deploy/package/man_page.sh makes: everything of --help is there, and groff has nothing against them."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ['FEWBIT_BIN'])
PROGRAMS = ('fewbit-server', 'fewbit-client', 'fewbit-quantize', 'fewbit-tune', 'fewbit-eval', 'fewbit-plan')


def run(*command, **options):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, **options).stdout


def page_of(program):
    return run(ROOT / 'deploy/package/man_page.sh', program)


def words_of(page):
    """The page's text without markup, as one line."""
    text = '\n'.join(line for line in page.splitlines() if not line.startswith('.') or line.startswith('.SS'))
    for markup, plain in (('\\fB', ''), ('\\fR', ''), ('\\-', '-'), ('\\&', ''), ('\\e', '\\'), ('.SS ', '')):
        text = text.replace(markup, plain)
    return ' '.join(text.split())


class ManPageTest(unittest.TestCase):

    def test_every_word_of_the_help_is_in_the_page(self):
        for program in PROGRAMS:
            with self.subTest(program):
                page = page_of(BIN / program)
                self.assertTrue(page.startswith(f'.TH {program.upper()} 1 "" "fewbit '), page[:80])
                self.assertRegex(page, rf'\.SH NAME\n{program.replace("-", "..")} .. \w')
                for section in ('SYNOPSIS', 'OPTIONS', 'NOTES'):
                    self.assertEqual(page.count(f'.SH {section}\n'), 1)
                words, _, rest = run(BIN / program, '--help').partition('\n')
                self.assertIn(words.partition(': ')[2].rstrip('.'), page.replace('\\-', '-'))
                self.assertIn(' '.join(rest.split()), words_of(page))

    def test_groff_finds_nothing(self):
        if shutil.which('groff') is None:
            self.skipTest('there is no groff (Debian: groff-base)')
        for program in PROGRAMS:
            with self.subTest(program):
                result = subprocess.run(['groff', '-man', '-Tutf8', '-ww', '-K', 'utf8'], input=page_of(BIN / program),
                                        capture_output=True, text=True, check=True)
                self.assertEqual(result.stderr, '')

    def test_what_groff_would_take_for_markup(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder) / 'fewbit-odd'
            help_text = ("fewbit-odd: does odd things.\n\n  fewbit-odd --file=.x\n\nOdd\n  --one                     .starts with a dot and has "
                         "\\n in it\n                            'quoted' second line\n  --two_with_a_long_name_so  next\n\nThe end. Really\nso.\n")
            program.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo "fewbit-odd 1.2.3"; exit; fi\ncat << "TEXT"\n' + help_text + 'TEXT\n')
            program.chmod(0o755)
            page = page_of(program)
            self.assertIn('"fewbit 1.2.3"', page)
            self.assertEqual(len(re.findall(r'^\.TP$', page, re.MULTILINE)), 2)
            self.assertIn('\n\\&.starts with a dot and has \\en in it\n\\&\'quoted\' second line\n', page)
            self.assertIn(' '.join(help_text.partition('\n')[2].split()), words_of(page))


if __name__ == '__main__':
    unittest.main()
