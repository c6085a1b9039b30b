"""The report in a real browser: opened from disk, without a network.

Needs Chromium on the machine (Debian: apt-get install chromium); no browser is
downloaded.
"""

import os
import shutil

import pytest

from tests.report import pages

playwright = pytest.importorskip(
    'playwright.sync_api', reason='playwright is not installed'
)
_CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        _CHROMIUM is None,
        reason='no Chromium on this machine: install chromium',
    ),
]
_FLAGS = (
    '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run'
    ' --disable-background-networking --disable-component-update --disable-sync'
)
_WIDTHS = (1280, 400)


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  """A browser with a profile of its own and no way out."""
  with playwright.sync_playwright() as driver:
    context = driver.chromium.launch_persistent_context(
        str(tmp_path_factory.mktemp('profile')),
        executable_path=_CHROMIUM,
        args=_FLAGS.split(),
        offline=True,
        has_touch=True,
    )
    yield context
    context.close()


@pytest.fixture(scope='module')
def address(site):
  """file:// address of the report, its figures beside it."""
  return f'file://{site}/report.html'


@pytest.fixture(params=_WIDTHS)
def page(request, chromium, address):
  """The report, loaded; fails afterwards if anything in it complained."""
  page = chromium.new_page()
  complaints, requests = [], []
  page.on('console', lambda m: complaints.append(f'{m.type}: {m.text}'))
  page.on('pageerror', lambda e: complaints.append(str(e)))
  page.on('request', lambda r: requests.append(r.url))
  page.set_viewport_size({'width': request.param, 'height': 800})
  page.goto(address)
  yield page
  broken = page.evaluate('window.broken')
  page.close()
  assert not complaints and broken is None
  outside = [
      url
      for url in requests
      if not url.startswith(('data:image/png', address.split('#')[0]))
  ]
  assert not outside and requests


def _narrow(page):
  return page.viewport_size['width'] < 900


def _at_top(page, id):
  """How far below the top of the window an element begins."""
  return page.evaluate(
      'id => document.getElementById(id).getBoundingClientRect().top', id
  )


def test_nothing_is_wider_than_the_window(page):
  for opened in (False, True):
    width = page.evaluate('document.documentElement.scrollWidth')
    assert width == page.viewport_size['width']
    # Nor does anything stick out of a box that hides it.
    wide = page.evaluate("""() => Array.from(
        document.querySelectorAll('main *')).filter(e =>
          !e.closest('.scroll > *') &&
          e.getBoundingClientRect().right > innerWidth + 1).length""")
    assert not wide
    if not opened:
      page.evaluate(
          "document.querySelectorAll('details').forEach(d => d.open = true)"
      )


def test_pictures_fit_and_are_there(page):
  pictures = page.locator('.picture img')
  assert pictures.count() == len(page.query_selector_all('figure')) > 5
  for i in range(pictures.count()):
    box = pictures.nth(i).bounding_box()
    assert 0 < box['width'] <= page.viewport_size['width']
    assert pictures.nth(i).evaluate('i => i.naturalWidth > 500')


def test_text_is_large_enough_to_read(page):
  small = page.evaluate("""() => Array.from(document.querySelectorAll('body *'))
      .filter(e => e.offsetParent && e.innerText &&
        parseFloat(getComputedStyle(e).fontSize) < 12)
      .map(e => e.outerHTML.slice(0, 80))""")
  assert not small


def test_every_link_leads_somewhere(page, address):
  links = page.locator('a[href]')
  hrefs = [links.nth(i).get_attribute('href') for i in range(links.count())]
  inside = [h for h in hrefs if h.startswith('#') and '/' not in h]
  files = [h for h in hrefs if not h.startswith('#')]
  assert len(inside) > 10 and len(files) > 5
  folder = os.path.dirname(address.removeprefix('file://'))
  assert all(os.path.isfile(os.path.join(folder, name)) for name in files)
  for href in inside:
    # By key: what is under a pointer moves while the navigation follows.
    page.locator(f'nav a[href="{href}"]').press('Enter')
    page.wait_for_function(f'location.hash === "{href}"')
    id, height = href[1:], page.viewport_size['height']
    # At the top, but not under the navigation, which stays in sight.
    assert -1 <= _at_top(page, id) < height / 5
    nav = page.locator('nav').bounding_box()
    assert abs(nav['y']) < 1
    if _narrow(page):
      assert _at_top(page, id) >= nav['height'] - 1
    page.wait_for_selector(f'nav a[href="{href}"][aria-current]')


def test_pointing_shows_the_values(page):
  picture = page.locator('#F1 .picture')
  picture.scroll_into_view_if_needed()
  values = page.evaluate(
      "JSON.parse(document.getElementById('F1-values').textContent)"
  )
  tip = page.locator('.tip')
  assert tip.is_hidden()
  box = picture.bounding_box()
  for point in [p for p in values['points'] if len(p) == 8][:3]:
    left, top, x, y, index, _, low, high = point
    at = box['x'] + left * box['width'], box['y'] + top * box['height']
    if _narrow(page):
      page.touchscreen.tap(*at)
    else:
      page.mouse.move(*at)
    text = tip.inner_text()
    label, panel, x_label, y_label = values['words'][index]
    assert label in text and panel in text
    assert f'{x_label}: {x:g}' in text
    assert f'{y_label}: {y:g} [{low:g}, {high:g}]' in text
    ring = page.locator('.ring').bounding_box()
    assert abs(ring['x'] + ring['width'] / 2 - at[0]) < 1.5
    shown = tip.bounding_box()
    assert shown['x'] >= 0
    assert shown['x'] + shown['width'] <= page.viewport_size['width']
  page.mouse.move(box['x'] + box['width'] / 2, box['y'] + 1)
  if not _narrow(page):
    assert tip.is_hidden()  # no data in the title


def test_values_by_keyboard(page):
  picture = page.locator('#F1 .picture')
  tip = page.locator('.tip')
  picture.focus()
  seen = set()
  for _ in range(3):
    picture.press('ArrowRight')
    seen.add(tip.inner_text())
  assert len(seen) == 3
  picture.press('ArrowLeft')
  assert tip.inner_text() in seen
  picture.press('Escape')
  assert tip.is_hidden()


def test_enlarging_a_picture(page):
  button = page.locator('#F1 .enlarge')
  assert button.is_visible() == _narrow(page)
  if _narrow(page):
    button.click()
    assert page.locator('#F1 img').bounding_box()['width'] > 900
    width = page.evaluate('document.documentElement.scrollWidth')
    assert width == page.viewport_size['width']
    button.click()
    assert page.locator('#F1 img').bounding_box()['width'] < 400


def test_browsing_responses(page):
  prompt = page.locator('#browser-text')
  columns = page.locator('#browser .method')
  assert columns.count() == 3
  assert prompt.inner_text() == f'Prompt 1 of 3: {pages.PROMPTS[0]}'
  tops = [columns.nth(i).bounding_box()['y'] for i in range(3)]
  assert (tops[0] < tops[1]) == _narrow(page)  # stacked or side by side

  page.locator('#browser-next').click()
  assert prompt.inner_text() == f'Prompt 2 of 3: {pages.PROMPTS[1]}'
  assert page.url.endswith('#responses/helpful/2')
  cells = columns.nth(1).locator('.response').nth(1).locator('td')
  assert cells.all_inner_texts() == ['+1.10', '-2.90', '-1.10', '25%']
  page.locator('#browser-previous').click()
  page.locator('#browser-previous').click()
  assert prompt.inner_text() == f'Prompt 3 of 3: {pages.PROMPTS[2]}'

  page.locator('#browser-property').select_option('both')
  assert page.url.endswith('#responses/both/3')
  rows = columns.nth(0).locator('.response').nth(0).locator('tbody th')
  assert rows.all_inner_texts() == ['Helpful', 'Harmless']
  page.locator('#browser-prompt').select_option('0')
  assert page.url.endswith('#responses/both/1')
  assert page.evaluate('history.length') <= 2  # looking around leaves no trail


def test_responses_are_text(page):
  texts = page.locator('#browser .response > p')
  for method, text in enumerate(pages.TEXTS.values()):
    assert texts.nth(2 * method).text_content() == text
  assert not page.query_selector_all('#browser img, #browser b, main script b')
  first = page.locator('#browser .response .moves')
  assert first.all_text_contents()[:2] == ['MOVE 0', 'NA']  # the first seed


def test_deep_link(page, address):
  # As from another page: a reload would go back to where the reader was.
  page.goto('about:blank')
  page.goto(address + '#responses/harmless/2')
  text = page.locator('#browser-text').inner_text()
  assert text == f'Prompt 2 of 3: {pages.PROMPTS[1]}'
  assert page.locator('#browser-property').input_value() == 'harmless'
  assert -1 <= _at_top(page, 'responses') < page.viewport_size['height'] / 2
  page.evaluate("location.hash = '#responses/both/3'")
  page.wait_for_function(
      "document.getElementById('browser-text').textContent.startsWith("
      "'Prompt 3')"
  )
  page.evaluate("location.hash = '#responses/nothing/9'")
  assert page.locator('#browser-property').input_value() == 'both'


def test_everything_is_open_on_paper(page):
  closed = 'document.querySelectorAll("details:not([open])").length'
  before = page.evaluate(closed)
  page.evaluate("dispatchEvent(new Event('beforeprint'))")
  assert before > 0 == page.evaluate(closed)
  page.emulate_media(media='print')
  assert page.locator('nav').is_hidden()
  page.evaluate("dispatchEvent(new Event('afterprint'))")
  assert page.evaluate(closed) == before
