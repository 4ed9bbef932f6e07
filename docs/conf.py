"""Settings of the site. tools/docsite/build.py gathers the pages first; see `make docs`."""

from karma_electric import __version__

project = "karma-electric"
author = "the karma-electric authors"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 4
exclude_patterns = ["files"]
root_doc = "index"
language = "en"
smartquotes = False  # "--force" in a sentence is an option, not a dash

html_theme = "furo"
html_title = f"karma-electric {__version__}"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"navigation_with_keys": True}
pygments_style = "default"
suppress_warnings = ["ref.python"]  # a class name in an annotation that two modules have: not our concern here
# Modules are told apart by their full path; a contents list with "karma_electric." in front of everything is no help.
add_module_names = False
toc_object_entries_show_parents = "hide"
