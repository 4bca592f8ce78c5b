//! The report as one HTML page: `page.html` filled in.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use serde::Serialize;

use super::Report;

const TEMPLATE: &str = include_str!("page.html");

/// What the template needs of a section beside what the report has.
#[derive(Serialize)]
struct Shown {
    /// HTML, made here of Markdown: all text in it is escaped.
    body: String,
    /// An address that holds the plot itself, in letters that need no escaping.
    plot: Option<String>,
}

/// The whole page. The template escapes everything but what is made here.
pub(super) fn text(report: &Report) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // Lines that only steer the template leave nothing behind.
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build()?;
    environment.set_syntax(syntax);
    environment.add_template("page.html", TEMPLATE)?;
    let address = |svg: &String| format!("data:image/svg+xml;base64,{}", BASE64.encode(svg));
    let shown: Vec<Shown> = report
        .sections
        .iter()
        .map(|section| Shown { body: html_of(&section.table), plot: section.plot.as_ref().map(address) })
        .collect();
    environment
        .get_template("page.html")?
        .render(context! { report => Serde(report), shown => Serde(&shown) })
}

/// HTML of Markdown that nobody vouches for: raw HTML in it becomes text, links and images lose their addresses, and
/// headings go one level down, below that of the page.
fn html_of(markdown: &str) -> String {
    let mut html = String::new();
    let events = Parser::new_ext(markdown, Options::ENABLE_TABLES).filter_map(tame);
    pulldown_cmark::html::push_html(&mut html, events);
    html
}

fn tame(event: Event<'_>) -> Option<Event<'_>> {
    match event {
        Event::Html(text) | Event::InlineHtml(text) => Some(Event::Text(text)),
        Event::Start(Tag::Link { .. } | Tag::Image { .. } | Tag::HtmlBlock)
        | Event::End(TagEnd::Link | TagEnd::Image | TagEnd::HtmlBlock) => None,
        Event::Start(Tag::Heading { level, .. }) => Some(Event::Start(Tag::Heading {
            level: deeper(level),
            id: None,
            classes: vec![],
            attrs: vec![],
        })),
        Event::End(TagEnd::Heading(level)) => Some(Event::End(TagEnd::Heading(deeper(level)))),
        other => Some(other),
    }
}

fn deeper(level: HeadingLevel) -> HeadingLevel {
    HeadingLevel::try_from(level as usize + 1).unwrap_or(HeadingLevel::H6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_becomes_html_one_level_down() {
        let html = html_of("# A\n\n## B\n\n| a | b |\n|---|---:|\n| 1 | `2` |\n\n- c\n");
        for part in ["<h2>A</h2>", "<h3>B</h3>", "<td>1</td>", "<code>2</code>", "<li>c</li>"] {
            assert!(html.contains(part), "{part} is missing in {html}");
        }
    }

    #[test]
    fn nothing_in_markdown_becomes_a_tag_or_an_address() {
        let hostile = "# T <script>alert(1)</script>\n\n<script>\nalert(2)\n</script>\n\n<img src=x onerror=alert(3)>\n\n\
                       [go](javascript:alert(4)) ![p](https://far.example/p.png) <https://far.example>\n\n\
                       | <b onclick=x> | ok |\n|---|---|\n| `</td><script>` | 1 |\n\n```\"><script>\nx\n```\n";
        let html = html_of(hostile);
        for part in ["<script", "<img", "<a ", "<b", "href", "src=\"", "</td><s"] {
            assert!(!html.contains(part), "{part} is in {html}");
        }
        for part in ["&lt;script&gt;alert(1)", "alert(2)", "&lt;img src=x", "go", "&lt;b onclick=x&gt;"] {
            assert!(html.contains(part), "{part} is missing in {html}");
        }
    }
}
