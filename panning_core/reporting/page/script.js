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

// On a page of runs the address says which are shown: #method=SNIP&sparsity=95 %
const runs = document.querySelector(".runs");
function filter() {
    const names = all("thead th", runs).map((header) => header.textContent);
    const wanted = [...new URLSearchParams(location.hash.slice(1))].filter(([name]) => names.includes(name));
    const rows = all("tbody tr", runs);
    for (const row of rows) row.hidden = !wanted.every(([name, value]) => row.cells[names.indexOf(name)].textContent === value);
    const count = runs.querySelector(".count");
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
    if (!wanted.length) return;
    const everything = document.createElement("a");
    everything.href = "#";
    everything.textContent = "show all";
    count.append(`: ${wanted.map((pair) => pair.join(" ")).join(", ")}; `, everything);
}
if (runs) {
    filter();
    addEventListener("hashchange", filter);
}

// On a narrow screen the studies are a strip: begin it at the current one.
const current = document.querySelector("nav [aria-current]");
if (current) document.querySelector("nav > ul").scrollLeft = current.parentElement.offsetLeft - 16;

const dialog = document.querySelector("dialog");
for (const button of all(".zoom")) {
    button.addEventListener("click", () => {
        dialog.replaceChildren(button.firstElementChild.cloneNode());
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
