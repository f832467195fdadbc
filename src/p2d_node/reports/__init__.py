"""Reports: parts of a page come in; one self-contained HTML file goes out."""
