// Sorting, filtering, zoom and theme; without it the pages read as they stand.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// A click on a header sorts by its column: numbers by size and before words, empty cells last; a second click turns the order round.
for (const table of all("table")) {
    all("thead th", table).forEach((header, column) => {
        const button = document.createElement("button");
        button.title = "sort by this column";
        button.append(...header.childNodes);
        header.append(button);
        button.addEventListener("click", () => {
            const down = header.getAttribute("aria-sort") === "ascending";
            all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
            header.setAttribute("aria-sort", down ? "descending" : "ascending");
            const rank = (cell) => (cell.textContent.trim() === "" ? 2 : "number" in cell.dataset ? 0 : 1);
            const rows = all("tbody tr", table).sort((one, other) => {
                const [a, b] = [one.cells[column], other.cells[column]];
                if (rank(a) !== rank(b)) return rank(a) - rank(b);
                const order = rank(a) === 0 ? a.dataset.number - b.dataset.number : a.textContent.localeCompare(b.textContent);
                return down ? -order : order;
            });
            table.tBodies[0].append(...rows);
        });
    });
}

// On a page of runs the address says which are shown: #method=SNIP|GraSP&sparsity=95 %. Lists of a column's values write it.
const parts = all(".runs").map((part) => ({ part, rows: all("tbody tr", part), names: all("thead th", part).map((header) => header.textContent) }));
const MOST = 40; // values of a list
const asked = () => new URLSearchParams(location.hash.slice(1));
const allows = (wanted, text) => wanted === text || wanted.split("|").includes(text);
for (const { part, rows, names } of parts) {
    names.forEach((name, column) => {
        const values = [...new Set(rows.map((row) => row.cells[column].textContent))];
        if (values.length < 2 || values.length > MOST || values.length === rows.length) return;
        const list = document.createElement("select");
        list.name = name;
        list.append(new Option("all", ""), ...values.sort((a, b) => a.localeCompare(b, "en", { numeric: true })).map((value) => new Option(value || "–", value || "|")));
        list.addEventListener("change", () => {
            const wanted = asked();
            wanted.delete(name);
            if (list.value) wanted.set(name, list.value);
            if (parts.length > 1) wanted.set("kind", part.dataset.kind);
            location.hash = wanted;
        });
        const label = document.createElement("label");
        label.append(name, list);
        part.querySelector(".filters").append(label);
    });
}
function filter() {
    const kind = asked().get("kind");
    for (const { part, rows, names } of parts) {
        const wanted = [...asked()].filter(([name]) => names.includes(name));
        part.hidden = kind !== null && !allows(kind, part.dataset.kind);
        for (const row of rows) row.hidden = !wanted.every(([name, value]) => allows(value, row.cells[names.indexOf(name)].textContent));
        for (const list of all("select", part)) {
            const value = (wanted.find(([name]) => name === list.name) ?? ["", ""])[1];
            if (![...list.options].some((option) => option.value === value)) list.append(new Option(value.replaceAll("|", " or "), value));
            list.value = value;
        }
        const count = part.querySelector(".count");
        count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
        if (!wanted.length) continue;
        const everything = document.createElement("a");
        everything.href = "#";
        everything.textContent = "show all";
        count.append(`: ${wanted.map(([name, value]) => `${name} ${value.replaceAll("|", " or ")}`).join(", ")}; `, everything);
    }
}
if (parts.length) {
    filter();
    addEventListener("hashchange", filter);
}

// The edge of a table that goes on beyond it is shown.
const edge = (box) => box.parentElement.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
const watch = new ResizeObserver((boxes) => boxes.forEach(({ target }) => edge(target.closest(".box"))));
for (const box of all(".box")) {
    box.addEventListener("scroll", () => edge(box), { passive: true });
    watch.observe(box);
    watch.observe(box.firstElementChild);
}

// On a narrow screen the studies are a strip: begin it at the current one.
const current = document.querySelector("nav [aria-current]");
if (current) document.querySelector("nav > ul").scrollLeft = current.parentElement.offsetLeft - 16;

const dialog = document.querySelector("dialog");
for (const button of all(".zoom")) {
    button.addEventListener("click", () => {
        const image = button.firstElementChild.cloneNode();
        if (button.dataset.svg) image.src = button.dataset.svg; // sharp at any size
        dialog.replaceChildren(image);
        dialog.showModal();
    });
}
dialog.addEventListener("click", () => dialog.close());

const theme = document.querySelector(".theme");
theme.hidden = false;
theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = getComputedStyle(root).colorScheme === "dark" || (root.dataset.theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", root.dataset.theme);
});
