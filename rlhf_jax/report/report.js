'use strict';

const byId = (id) => document.getElementById(id);
const read = (id) => byId(id) && JSON.parse(byId(id).textContent);

/** An element with text children: nothing is ever parsed as HTML. */
function make(name, className, ...children) {
  const element = document.createElement(name);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

// -- Values of the figures: by pointer, by touch, and by the arrow keys.

const tip = make('div', 'tip');
tip.setAttribute('role', 'status');
tip.hidden = true;
document.body.append(tip);
const ring = make('span', 'ring');

function hideTip() {
  tip.hidden = true;
  ring.remove();
}

function showTip(picture, words, point) {
  const [left, top, x, y, index, along, low, high] = point;
  const [label, panel, xLabel, yLabel] = words[index];
  const line = (name, value, axis) =>
    (name ? `${name}: ` : '') + value +
    (along === axis ? ` [${low}, ${high}]` : '');
  const lines = [line(xLabel, x, 'x'), line(yLabel, y, 'y')];
  if (label) lines.unshift(panel);
  tip.replaceChildren(
    make('b', '', label || panel),
    ...lines.filter(Boolean).map((text) => make('span', '', text)));
  ring.style.left = `${100 * left}%`;
  ring.style.top = `${100 * top}%`;
  picture.append(ring);
  tip.hidden = false;
  const box = picture.getBoundingClientRect();
  const across = box.left + left * box.width;
  const down = box.top + top * box.height;
  const room = document.documentElement.clientWidth - tip.offsetWidth - 6;
  const above = down - tip.offsetHeight - 14;
  tip.style.left = `${Math.max(6, Math.min(room, across + 12))}px`;
  tip.style.top = `${above > 4 ? above : down + 14}px`;
}

function followValues(picture, {words, points}) {
  let shown = -1;
  const show = (index) => {
    shown = index;
    showTip(picture, words, points[index]);
  };
  const follow = (event) => {
    const box = picture.getBoundingClientRect();
    const distance = (p) => Math.hypot(
      event.clientX - box.left - p[0] * box.width,
      event.clientY - box.top - p[1] * box.height);
    let best = 0;
    points.forEach((p, i) => {
      if (distance(p) < distance(points[best])) best = i;
    });
    const reach = event.pointerType === 'touch' ? 40 : 24;
    if (distance(points[best]) <= reach) show(best);
    else hideTip();
  };
  picture.addEventListener('pointermove', follow);
  picture.addEventListener('pointerdown', follow);
  picture.addEventListener('pointerleave', (event) => {
    if (event.pointerType !== 'touch') hideTip();
  });
  picture.addEventListener('focus', () => {
    if (picture.matches(':focus-visible') && tip.hidden) show(Math.max(shown, 0));
  });
  picture.addEventListener('blur', hideTip);
  picture.addEventListener('keydown', (event) => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (event.key === 'Escape') hideTip();
    if (!step) return;
    event.preventDefault();
    show((shown + step + points.length) % points.length);
  });
}

for (const picture of document.querySelectorAll('.picture')) {
  const data = read(`${picture.closest('figure').id}-values`);
  if (data && data.points.length) followValues(picture, data);
}
for (const button of document.querySelectorAll('.enlarge')) {
  button.addEventListener('click', () => {
    const large = button.closest('figure').classList.toggle('large');
    button.setAttribute('aria-pressed', large);
    button.textContent = large ? 'Fit to page' : 'Enlarge';
    hideTip();
  });
}
addEventListener('scroll', hideTip, {passive: true, capture: true});

// -- Responses, one prompt at a time; #responses/PROPERTY/NUMBER links to it.

const properties = read('browser-data');

function scoreTable(property, scores) {
  const row = (head, cells, name) => make('tr', '',
    make('th', '', head), ...cells.map((cell) => make(name, '', cell)));
  return make('table', '',
    make('thead', '', row('', property.scores, 'th')),
    make('tbody', '', ...scores.map(
      (cells, i) => row(property.rewards[i], cells, 'td'))));
}

function methodColumn(property, method, answers) {
  return make('section', `method ${method.name}`,
    make('h3', '', method.label), make('small', '', method.note),
    ...answers.map((answer) => make('div', 'response',
      make('p', '', answer.text),
      answer.moves === answer.text ? '' : make('span', 'moves', answer.moves),
      scoreTable(property, answer.scores))));
}

function showPrompt(property, number) {
  const prompt = property.prompts[number];
  byId('browser-property').value = property.name;
  byId('browser-prompt').replaceChildren(...property.prompts.map((p, i) => {
    const option = make('option', '', `${i + 1}. ${p.text}`);
    option.value = i;
    return option;
  }));
  byId('browser-prompt').value = number;
  byId('browser-text').textContent =
    `Prompt ${number + 1} of ${property.prompts.length}: ${prompt.text}`;
  byId('browser-link').href =
    `#responses/${encodeURIComponent(property.name)}/${number + 1}`;
  byId('browser').replaceChildren(...property.methods.map(
    (method, i) => methodColumn(property, method, prompt.answers[i])));
}

/** The property and prompt that the address names, or null. */
function linked() {
  const [section, name, number] =
    location.hash.slice(1).split('/').map(decodeURIComponent);
  const property = properties.find((p) => p.name === name);
  const index = Number(number) - 1;
  if (section !== 'responses' || !property || !property.prompts[index]) {
    return null;
  }
  return [property, index];
}

function browse() {
  let [property, number] = linked() || [properties[0], 0];
  const go = (newProperty, newNumber) => {
    const count = newProperty.prompts.length;
    [property, number] = [newProperty, (newNumber + count) % count];
    showPrompt(property, number);
    location.replace(byId('browser-link').hash);
  };
  byId('browser-property').append(...properties.map((p) => {
    const option = make('option', '', p.label);
    option.value = p.name;
    return option;
  }));
  byId('browser-property').addEventListener('change', (event) => {
    const chosen = properties.find((p) => p.name === event.target.value);
    go(chosen, Math.min(number, chosen.prompts.length - 1));
  });
  byId('browser-prompt').addEventListener('change',
    (event) => go(property, Number(event.target.value)));
  byId('browser-previous').addEventListener('click',
    () => go(property, number - 1));
  byId('browser-next').addEventListener('click',
    () => go(property, number + 1));
  addEventListener('hashchange', () => {
    const found = linked();
    if (!found) return;
    const moved = found[0] !== property || found[1] !== number;
    [property, number] = found;
    showPrompt(property, number);
    if (moved) byId('responses').scrollIntoView();
  });
  showPrompt(property, number);
  if (linked()) byId('responses').scrollIntoView();
}

if (properties) browse();

// -- Where the reader is, and everything open on paper.

const links = Array.from(document.querySelectorAll('nav a'));
let current = null;

/** Marks the last section or figure that begins above the first few lines. */
function markCurrent() {
  const above = links.filter((a) =>
    byId(a.hash.slice(1)).getBoundingClientRect().top < 80);
  const link = above.pop() || null;
  if (link === current) return;
  if (current) current.removeAttribute('aria-current');
  current = link;
  if (!link) return;
  link.setAttribute('aria-current', 'true');
  const nav = link.closest('nav');
  const box = link.getBoundingClientRect();
  const frame = nav.getBoundingClientRect();
  nav.scrollBy(
    box.left < frame.left || box.right > frame.right
      ? box.left - frame.left - 40 : 0,
    box.top < frame.top || box.bottom > frame.bottom
      ? box.top - frame.top - 60 : 0);
}

addEventListener('scroll', () => requestAnimationFrame(markCurrent),
  {passive: true});
markCurrent();

let closed = [];
addEventListener('beforeprint', () => {
  closed = Array.from(document.querySelectorAll('details:not([open])'));
  for (const details of closed) details.open = true;
});
addEventListener('afterprint', () => {
  for (const details of closed) details.open = false;
});
